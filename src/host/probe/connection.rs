//! TCP of probes (RFC 9293), by smoltcp: one socket for each, only while the probe runs.
//!
//! smoltcp looks at all sockets of a set for each packet; since every connection is a set of its own here, found by
//! its flow, the costs of a packet do not depend on how many there are. All share one `Interface`, which knows
//! neither routes nor neighbours: on a medium of IP packets it is only the clock and the own address, which is set
//! before each use. So VRFs may have the same addresses.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::{Flow, MAX_PROBE_BYTES, Outside, Reason, http, tls};
use crate::config::{HealthCheck, HealthKind};
use crate::time::Nanos;

/// Receive buffer of a connection that only has to open.
const LITTLE: usize = 64;
/// Receive buffer of one that carries an answer.
const RECEIVE_BYTES: usize = 4096;
/// Send buffer within TLS: a client has not much to say.
const SEND_TLS_BYTES: usize = 2048;

/// What all connections share.
pub(super) struct Stack {
    interface: Interface,
}

impl Stack {
    /// Sequence numbers begin where `seed` leads to.
    pub(super) fn new(seed: u64) -> Stack {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        Stack { interface: Interface::new(config, &mut Nowhere, Instant::ZERO) }
    }

    fn stand_at(&mut self, own: IpAddr) {
        // Everything is on the link: who routes is the gateway.
        let everywhere = IpCidr::new(own.into(), 0);
        self.interface.update_ip_addrs(|addrs| {
            addrs.clear();
            // There is room for one at least, and it is the only one.
            let _ = addrs.push(everywhere);
        });
    }
}

/// How far a connection is.
enum Talk {
    /// It only has to open.
    Open,
    /// A request goes, an answer comes.
    Http { request: Vec<u8>, sent: usize, answer: http::Answer },
    /// The same within TLS.
    Https { session: Box<tls::Session>, answer: http::Answer },
}

/// A connection under way.
pub(super) struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    was_open: bool,
    talk: Talk,
}

impl Connection {
    /// Begins to open one; with `tls` it speaks that. `Err`: the addresses are none that can be connected, or the
    /// host has no name for TLS.
    pub(super) fn open(
        flow: &Flow,
        vrf: u16,
        check: &HealthCheck,
        tls: Option<&Arc<ClientConfig>>,
        at: (&mut Stack, Nanos),
        outside: &mut dyn Outside,
    ) -> Result<Connection, Reason> {
        let request = || http::request(check, flow.peer, flow.peer_port);
        let talk = match (check.kind, tls) {
            (HealthKind::Http, _) => Talk::Http { request: request(), sent: 0, answer: http::Answer::new() },
            (HealthKind::Https, tls) => {
                let session = tls.and_then(|tls| tls::Session::new(tls, check, flow.peer, &request()));
                Talk::Https { session: Box::new(session.ok_or(Reason::Tls)?), answer: http::Answer::new() }
            }
            _ => Talk::Open,
        };
        let (receive, send) = match &talk {
            Talk::Open => (LITTLE, LITTLE),
            Talk::Http { request, .. } => (RECEIVE_BYTES, request.len()),
            Talk::Https { .. } => (RECEIVE_BYTES, SEND_TLS_BYTES),
        };
        let (stack, now) = at;
        let mut socket = Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]));
        // A probe is short: nothing to be gained by waiting.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        stack.stand_at(flow.own);
        let (peer, own) = ((flow.peer, flow.peer_port), (flow.own, flow.own_port));
        socket.connect(stack.interface.context(), peer, own).map_err(|_| Reason::NoRoute)?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let mut connection = Connection { sockets, handle, was_open: false, talk };
        connection.poll(None, flow, vrf, (stack, now), outside);
        Ok(connection)
    }

    /// Takes a packet, or does what is due. `Some`: how the probe ended.
    pub(super) fn step(
        &mut self,
        packet: Option<&[u8]>,
        flow: &Flow,
        vrf: u16,
        check: &HealthCheck,
        at: (&mut Stack, Nanos),
        outside: &mut dyn Outside,
    ) -> Option<Reason> {
        let (stack, now) = at;
        self.poll(packet, flow, vrf, (stack, now), outside);
        let ended = self.look(check);
        if ended.is_none() {
            // What was said now goes now.
            self.poll(None, flow, vrf, (stack, now), outside);
        }
        ended
    }

    /// When the connection has something to do by itself.
    pub(super) fn due(&mut self, flow: &Flow, stack: &mut Stack, now: Nanos) -> Option<Nanos> {
        stack.stand_at(flow.own);
        let due = stack.interface.poll_at(instant(now), &self.sockets)?;
        // Rounded up to its microsecond, or it would be asked again too early.
        Some(Nanos(due.total_micros().max(0) as u64 * 1000).max(now))
    }

    /// Ends it at once, with a RST if it is open: there is nothing that could get lost, and the peer keeps no state.
    pub(super) fn abort(
        &mut self,
        flow: &Flow,
        vrf: u16,
        at: (&mut Stack, Nanos),
        outside: &mut dyn Outside,
    ) {
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        if !matches!(socket.state(), State::SynSent | State::Closed) {
            socket.abort();
            self.poll(None, flow, vrf, at, outside);
        }
    }

    fn poll(
        &mut self,
        packet: Option<&[u8]>,
        flow: &Flow,
        vrf: u16,
        at: (&mut Stack, Nanos),
        outside: &mut dyn Outside,
    ) {
        let (stack, now) = at;
        stack.stand_at(flow.own);
        let mut wire = Wire { packet, vrf, outside };
        stack.interface.poll(instant(now), &mut wire, &mut self.sockets);
    }

    /// Sends and reads what can be, and judges.
    fn look(&mut self, check: &HealthCheck) -> Option<Reason> {
        let socket: &mut Socket<'_> = self.sockets.get_mut(self.handle);
        match socket.state() {
            State::SynSent | State::SynReceived => return None,
            State::Closed if !self.was_open => return Some(Reason::Refused),
            _ => self.was_open = true,
        }
        loop {
            // What has been read may have to be answered at once.
            match &mut self.talk {
                Talk::Open => return Some(Reason::Ok),
                Talk::Http { request, sent, .. } if socket.may_send() => {
                    *sent += socket.send_slice(&request[*sent..]).unwrap_or(0);
                }
                Talk::Https { session, .. } if socket.may_send() => {
                    let sent = socket.send_slice(&session.outgoing).unwrap_or(0);
                    session.outgoing.drain(..sent);
                }
                Talk::Http { .. } | Talk::Https { .. } => {}
            }
            if !socket.can_recv() {
                break;
            }
            let ended = socket.recv(|bytes| {
                let ended = match &mut self.talk {
                    Talk::Open => None,
                    Talk::Http { answer, .. } => answer.take(bytes, check),
                    Talk::Https { session, answer } => session.take(bytes, answer, check),
                };
                (bytes.len(), ended)
            });
            if let Ok(Some(reason)) = ended {
                return Some(reason);
            }
        }
        match socket.state() {
            State::Closed => Some(Reason::Reset),
            _ if socket.may_recv() => None,
            _ => match &self.talk {
                Talk::Open => None,
                Talk::Http { answer, .. } | Talk::Https { answer, .. } => Some(answer.end()),
            },
        }
    }
}

fn instant(now: Nanos) -> Instant {
    Instant::from_micros((now.0 / 1000) as i64)
}

fn capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = MAX_PROBE_BYTES;
    capabilities
}

/// One packet in, any number out.
struct Wire<'p, 'o> {
    packet: Option<&'p [u8]>,
    vrf: u16,
    outside: &'o mut dyn Outside,
}

struct Received<'p>(&'p [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Sent<'w>(u16, &'w mut dyn Outside);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = [0; MAX_PROBE_BYTES];
        // smoltcp keeps to the MTU that it was told.
        let bytes = &mut bytes[..len.min(MAX_PROBE_BYTES)];
        let result = f(bytes);
        self.1.send(self.0, bytes);
        result
    }
}

impl Device for Wire<'_, '_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sent<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sent<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sent(self.vrf, &mut *self.outside)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        self.outside.has_room().then_some(Sent(self.vrf, &mut *self.outside))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

/// What the interface is made with.
struct Nowhere;

impl Device for Nowhere {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sent<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}
