//! DHCP relay: messages of clients go to their servers, those of servers to their clients. What a message says is the
//! matter of [`crate::host::dhcp`]; here are the ways. Nothing is remembered: whose a reply is stands in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::SlowPath;
use crate::host::LinkTarget;
use crate::host::dhcp::{self, CLIENT_PORT, CLIENT_PORT_V6, SERVER_PORT, SERVER_PORT_V6, v4, v6};
use crate::mem::FramePool;
use crate::neighbours;
use crate::packet::view::{array, be16, be32, be128, ethertype};
use crate::packet::{DropReason, Family, Packet};
use crate::pipeline::route::{self, is_own};
use crate::pipeline::{Context, Limits};
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::relay::Relay;
use crate::tables::{Interface, NO_INTERFACE, same_prefix_v6};
use crate::telemetry::{RelayCounters, add};

/// Ethernet broadcast.
const BROADCAST_MAC: u64 = 0xffff_ffff_ffff;
/// IPv4 header and UDP header.
const HEADERS_V4: usize = 28;
/// Ethernet header without tags.
const ETHERNET_BYTES: usize = 14;

/// What became of a message.
enum Relayed {
    /// It is on its way.
    Sent,
    /// The client's link-layer address has to be asked for: interface and neighbour slot.
    Unresolved(u16, u32),
}

/// A message that is lost, and the relay whose it was, if that is known.
struct Lost<'t>(DropReason, Option<&'t Relay>);

impl SlowPath {
    /// Handles a packet that [`crate::pipeline::relay::is_wanted`].
    pub(super) fn relay(
        &mut self,
        mut packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Result<(), (Packet, DropReason)> {
        let result = match packet.meta.family {
            Family::Ipv4 => self.relay_v4(&packet, cx, pool, limits),
            _ => self.relay_v6(&packet, cx, pool, limits),
        };
        match result {
            Ok(Relayed::Sent) => {
                self.consumed(packet, None, cx, pool);
                Ok(())
            }
            Ok(Relayed::Unresolved(egress, neighbour)) => {
                (packet.meta.egress, packet.meta.neighbour) = (egress, neighbour);
                self.resolve(packet, cx, pool)
            }
            Err(Lost(reason, relay)) => {
                if let Some(relay) = relay {
                    // What its sender is told is about the way to the client.
                    packet.meta.egress = relay.interface;
                    count(relay, cx, |counters| counters.lose(reason));
                }
                Err((packet, reason))
            }
        }
    }

    fn relay_v4<'t>(
        &mut self,
        packet: &Packet,
        cx: &Context<'t>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Result<Relayed, Lost<'t>> {
        let meta = &packet.meta;
        let ours = cx.tables.relays.v4.on(meta.interface);
        let message = dhcp::payload(&packet.frame, meta).map_err(|reason| Lost(reason, ours))?;
        if v4::is_reply(message) {
            return self.reply_v4(packet, message, cx, pool);
        }
        // To where servers answer, but from none of an interface's clients.
        let Some(relay) = ours else { return Err(Lost(DropReason::DhcpUnknownServer, None)) };
        let lost = |reason| Lost(reason, Some(relay));
        take_token(relay, 0, cx, limits).map_err(lost)?;
        let is_ours = |addr: Ipv4Addr| {
            cx.tables.relays.is_giaddr(relay.vrf, addr)
                || [meta.vrf, relay.vrf].iter().any(|vrf| is_own(cx.tables, *vrf, addr.into()))
        };
        let limit = usize::from(mtu_towards_servers(relay, cx)).saturating_sub(HEADERS_V4);
        let out = v4::request(message, relay, is_ours, limit).map_err(lost)?;
        self.send_to_servers(relay, SERVER_PORT, &out, cx, pool).map_err(lost)
    }

    fn relay_v6<'t>(
        &mut self,
        packet: &Packet,
        cx: &Context<'t>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Result<Relayed, Lost<'t>> {
        let meta = &packet.meta;
        let ours = cx.tables.relays.v6.on(meta.interface);
        let message = dhcp::payload(&packet.frame, meta).map_err(|reason| Lost(reason, ours))?;
        let (bytes, l3) = (packet.frame.bytes(), usize::from(meta.l3));
        if v6::is_reply(message) {
            return self.reply_v6(packet, message, cx, pool);
        }
        let Some(relay) = ours else { return Err(Lost(DropReason::DhcpUnknownServer, None)) };
        let lost = |reason| Lost(reason, Some(relay));
        take_token(relay, 1, cx, limits).map_err(lost)?;
        let peer = Ipv6Addr::from(be128(bytes, l3 + 8));
        let out = v6::forward(message, peer, sender(packet), relay).map_err(lost)?;
        self.send_to_servers(relay, SERVER_PORT_V6, &out, cx, pool).map_err(lost)
    }

    /// A copy for each server, routed like all that the gateway says.
    fn send_to_servers(
        &mut self,
        relay: &Relay,
        port: u16,
        message: &[u8],
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<Relayed, DropReason> {
        for server in &relay.spec.servers {
            let bytes = dhcp::datagram((relay.spec.source, port), (*server, port), message);
            let bytes = bytes.ok_or(DropReason::DhcpTooLong)?;
            let frame = Some(&bytes).filter(|_| self.has_budget()).and_then(|bytes| pool.take_filled(bytes));
            self.push_own(frame.ok_or(DropReason::NoBuffer)?, relay.vrf);
            add(&cx.counters.originated, 1);
        }
        count(relay, cx, |counters| add(&counters.requests, 1));
        Ok(Relayed::Sent)
    }

    fn reply_v4<'t>(
        &mut self,
        packet: &Packet,
        message: &[u8],
        cx: &Context<'t>,
        pool: &mut FramePool,
    ) -> Result<Relayed, Lost<'t>> {
        let meta = &packet.meta;
        let (src, dst) = ends_v4(packet);
        let relays = &cx.tables.relays.v4;
        // Clients must not speak for a server.
        let comes_from_there = route::leads_to(cx.tables, meta.vrf, src.into(), Some(meta.interface));
        let is_server = |relay: &Relay| comes_from_there && relay.is_server(src.into());
        if !relays.at(meta.vrf, dst.into()).any(is_server) {
            return Err(Lost(DropReason::DhcpUnknownServer, None));
        }
        let reply = v4::read_reply(message).map_err(|reason| Lost(reason, None))?;
        let by_circuit = reply.circuit.and_then(|circuit| relays.with_id(meta.vrf, dst.into(), circuit));
        let relay = by_circuit
            .or_else(|| relays.at(meta.vrf, dst.into()).find(|relay| relay.spec.is_own_source))
            .filter(|_| reply.giaddr == dst)
            .ok_or(Lost(DropReason::DhcpNoClient, None))?;
        let lost = |reason| Lost(reason, Some(relay));
        if !is_server(relay) {
            return Err(lost(DropReason::DhcpUnknownServer));
        }
        let out = reply.for_client(relay).map_err(lost)?;
        let egress = cx.tables.interface(relay.interface);
        let (to, mac) = match reply.client() {
            v4::Client::Broadcast => (Ipv4Addr::BROADCAST, BROADCAST_MAC),
            v4::Client::Unicast { addr, mac } => (addr, mac),
        };
        if out.len() + HEADERS_V4 > usize::from(egress.mtu_bytes) {
            return Err(lost(DropReason::DhcpTooLong));
        }
        let from = (relay.spec.link, SERVER_PORT);
        let bytes =
            dhcp::datagram(from, (to.into(), CLIENT_PORT), &out).ok_or(lost(DropReason::DhcpTooLong))?;
        let link = LinkTarget { interface: relay.interface, mac, ethertype: ethertype::IPV4 };
        self.send_on_link(link, &bytes, egress, cx, pool).map_err(lost)?;
        count(relay, cx, |counters| add(&counters.replies, 1));
        Ok(Relayed::Sent)
    }

    fn reply_v6<'t>(
        &mut self,
        packet: &Packet,
        message: &[u8],
        cx: &Context<'t>,
        pool: &mut FramePool,
    ) -> Result<Relayed, Lost<'t>> {
        let meta = &packet.meta;
        let (bytes, l3) = (packet.frame.bytes(), usize::from(meta.l3));
        let [src, dst] = [8, 24].map(|at| IpAddr::V6(be128(bytes, l3 + at).into()));
        let relays = &cx.tables.relays.v6;
        let comes_from_there = route::leads_to(cx.tables, meta.vrf, src, Some(meta.interface));
        let is_server = |relay: &Relay| comes_from_there && relay.is_server(src);
        if !relays.at(meta.vrf, dst).any(is_server) {
            return Err(Lost(DropReason::DhcpUnknownServer, None));
        }
        let reply = v6::read_reply(message).map_err(|reason| Lost(reason, None))?;
        let relay = match reply.interface_id {
            Some(id) => relays.with_id(meta.vrf, dst, id),
            // RFC 8415 section 19.2: the link-address says it, where the server keeps silent.
            None => relays.at(meta.vrf, dst).find(|relay| relay.spec.link == IpAddr::V6(reply.link)),
        };
        let relay = relay.ok_or(Lost(DropReason::DhcpNoClient, None))?;
        let lost = |reason| Lost(reason, Some(relay));
        if !is_server(relay) {
            return Err(lost(DropReason::DhcpUnknownServer));
        }
        let egress = cx.tables.interface(relay.interface);
        let peer = reply.peer;
        let is_on_link = peer.is_unicast_link_local();
        let own = if is_on_link { egress.info.link_local.map(IpAddr::V6) } else { Some(relay.spec.link) };
        let own = own.filter(|own| *own != peer).ok_or(lost(DropReason::DhcpInvalid))?;
        // Further away there are relays only.
        let is_near = egress.info.v6.iter().any(|(own, len)| same_prefix_v6(*own, peer, *len));
        if !is_on_link && !is_near && !relay.spec.from_relays {
            return Err(lost(DropReason::DhcpNoClient));
        }
        let to_port = if reply.is_to_relay { SERVER_PORT_V6 } else { CLIENT_PORT_V6 };
        let bytes = dhcp::datagram((own, SERVER_PORT_V6), (peer.into(), to_port), reply.message)
            .filter(|bytes| !is_on_link || bytes.len() <= usize::from(egress.mtu_bytes))
            .ok_or(lost(DropReason::DhcpTooLong))?;
        if is_on_link {
            // No route leads to a link-local address.
            let cap = cx.tables.settings.neighbours_per_interface;
            let slot = cx.neighbours.find_or_insert(relay.interface, peer.into(), cap);
            let slot = slot.map_err(|neighbours::TableFull| lost(DropReason::NeighbourTableFull))?;
            let word = cx.neighbours.word(slot);
            if !egress.up {
                return Err(lost(DropReason::PortDown));
            }
            if !word.is_usable() {
                return Ok(Relayed::Unresolved(relay.interface, slot));
            }
            cx.neighbours.mark_used(slot, cx.now);
            let link = LinkTarget { interface: relay.interface, mac: word.mac(), ethertype: ethertype::IPV6 };
            self.send_on_link(link, &bytes, egress, cx, pool).map_err(lost)?;
        } else {
            let frame = Some(&bytes).filter(|_| self.has_budget()).and_then(|bytes| pool.take_filled(bytes));
            self.push_own(frame.ok_or(lost(DropReason::NoBuffer))?, egress.vrf);
            add(&cx.counters.originated, 1);
        }
        count(relay, cx, |counters| add(&counters.replies, 1));
        Ok(Relayed::Sent)
    }

    fn send_on_link(
        &mut self,
        link: LinkTarget,
        bytes: &[u8],
        egress: &Interface,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), DropReason> {
        if !egress.up {
            return Err(DropReason::PortDown);
        }
        match self.emit_link(link, bytes, cx, pool) {
            true => Ok(()),
            false if egress.overlay != NO_OVERLAY => Err(DropReason::VxlanNoTunnel),
            false => Err(DropReason::NoBuffer),
        }
    }
}

fn ends_v4(packet: &Packet) -> (Ipv4Addr, Ipv4Addr) {
    let l3 = usize::from(packet.meta.l3);
    (be32(packet.frame.bytes(), l3 + 12).into(), packet.meta.dst_v4.into())
}

/// Source MAC address of the frame that a packet came in, also of one in a tunnel.
fn sender(packet: &Packet) -> [u8; 6] {
    let (bytes, l3) = (packet.frame.bytes(), usize::from(packet.meta.l3));
    let is_tag = |at: usize| matches!(be16(bytes, at), ethertype::VLAN | ethertype::QINQ);
    let mut behind_tags = ETHERNET_BYTES;
    while behind_tags < l3 && is_tag(behind_tags - 2) {
        behind_tags += 4;
    }
    let at = if behind_tags == l3 { 0 } else { l3 - ETHERNET_BYTES };
    *array(bytes, at + 6)
}

/// The token that a message of a client takes. `family`: 0 of IPv4, 1 of IPv6.
fn take_token(relay: &Relay, family: usize, cx: &Context<'_>, limits: &Limits) -> Result<(), DropReason> {
    let rate = relay.spec.limit;
    let bucket = limits.relays.get(usize::from(relay.interface)).map(|of| &of[family]);
    let has_token = bucket.is_some_and(|bucket| bucket.take(rate.per_s, rate.burst, cx.now));
    if has_token { Ok(()) } else { Err(DropReason::DhcpRateLimit) }
}

/// The shortest MTU of the interfaces that servers are behind; 1500 if there is no way to them.
fn mtu_towards_servers(relay: &Relay, cx: &Context<'_>) -> u16 {
    let ways = relay.spec.servers.iter().filter_map(|server| route::of_own(cx.tables, relay.vrf, *server));
    let mtus = ways
        .filter(|(egress, _)| *egress != NO_INTERFACE)
        .map(|(egress, _)| cx.tables.interface(egress).mtu_bytes);
    mtus.min().unwrap_or(1500)
}

fn count(relay: &Relay, cx: &Context<'_>, note: impl FnOnce(&RelayCounters)) {
    let family = usize::from(relay.spec.source.is_ipv6());
    if let Some(counters) = cx.counters.relays[family].get(relay.interface.into()) {
        note(counters);
    }
}
