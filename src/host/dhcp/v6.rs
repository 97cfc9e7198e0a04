//! DHCPv6 messages on their way through a relay (RFC 8415 sections 9 and 19), and what it adds: Interface-Id
//! (section 21.18), Remote-ID (RFC 4649), the client's link-layer address (RFC 6939).

use std::net::{IpAddr, Ipv6Addr};

use super::{Message, put};
use crate::packet::DropReason;
use crate::packet::view::{array, be16};
use crate::tables::relay::Relay;

/// All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
pub const ALL_RELAYS_AND_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

// Message types (RFC 8415 section 7.3). Others are relayed as well (RFC 7283 section 3).
const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;
const RECONFIGURE: u8 = 10;
const INFORMATION_REQUEST: u8 = 11;
const RELAY_FORWARD: u8 = 12;
const RELAY_REPLY: u8 = 13;

/// Type and transaction (RFC 8415 section 8).
const HEADER_BYTES: usize = 4;
/// Type, hop count, link and peer (RFC 8415 section 9).
const RELAY_HEADER_BYTES: usize = 34;
const LINK: usize = 2;
const PEER: usize = 18;

// Options.
const RELAY_MESSAGE: u16 = 9;
const INTERFACE_ID: u16 = 18;
const REMOTE_ID: u16 = 37;
const CLIENT_LINK_LAYER_ADDRESS: u16 = 79;
/// Hardware type of Ethernet (RFC 6939 section 4).
const ETHERNET: [u8; 2] = [0, 1];

/// Walks options; what is cut off is a fault.
struct Options<'m> {
    rest: &'m [u8],
}

impl<'m> Iterator for Options<'m> {
    type Item = Result<(u16, &'m [u8]), DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((head, behind)) = self.rest.split_first_chunk::<4>() else {
            self.rest = &[];
            return Some(Err(DropReason::DhcpInvalid));
        };
        let Some((value, rest)) = behind.split_at_checked(usize::from(be16(head, 2))) else {
            self.rest = &[];
            return Some(Err(DropReason::DhcpInvalid));
        };
        self.rest = rest;
        Some(Ok((be16(head, 0), value)))
    }
}

/// True for a message from servers.
pub fn is_reply(message: &[u8]) -> bool {
    message.first() == Some(&RELAY_REPLY)
}

/// True for what only servers say.
fn is_from_server(kind: u8) -> bool {
    matches!(kind, ADVERTISE | REPLY | RECONFIGURE | RELAY_REPLY)
}

fn is_host(addr: Ipv6Addr) -> bool {
    !addr.is_unspecified() && !addr.is_loopback() && !addr.is_multicast() && addr.to_ipv4_mapped().is_none()
}

fn put_option(out: &mut Message, code: u16, parts: &[&[u8]]) -> Result<(), DropReason> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    put(out, &code.to_be_bytes())?;
    put(out, &u16::try_from(len).map_err(|_| DropReason::DhcpTooLong)?.to_be_bytes())?;
    parts.iter().try_for_each(|part| put(out, part))
}

/// Makes of what came from `peer`, in a frame from `mac`, the Relay-forward that servers get.
pub fn forward(message: &[u8], peer: Ipv6Addr, mac: [u8; 6], relay: &Relay) -> Result<Message, DropReason> {
    const BAD: DropReason = DropReason::DhcpInvalid;
    let kind = *message.first().ok_or(BAD)?;
    let is_relayed = kind == RELAY_FORWARD;
    let header_len = if is_relayed { RELAY_HEADER_BYTES } else { HEADER_BYTES };
    if kind == 0 || is_from_server(kind) || message.len() < header_len || !is_host(peer) {
        return Err(BAD);
    }
    if kind <= INFORMATION_REQUEST || is_relayed {
        Options { rest: &message[header_len..] }.try_for_each(|option| option.map(|_| ()))?;
    }
    let IpAddr::V6(link) = relay.spec.link else { return Err(BAD) };
    let (hops, link) = if !is_relayed {
        (0, link)
    } else if message[1] >= relay.spec.max_hops {
        // RFC 8415 section 19.1.2.
        return Err(DropReason::DhcpHops);
    } else if !relay.spec.from_relays {
        return Err(DropReason::DhcpOtherRelay);
    } else {
        // A relay with a routable address has said which link it is.
        (message[1] + 1, if peer.is_unicast_link_local() { link } else { Ipv6Addr::UNSPECIFIED })
    };
    let mut out = Message::new();
    put(&mut out, &[RELAY_FORWARD, hops])?;
    put(&mut out, &link.octets())?;
    put(&mut out, &peer.octets())?;
    put_option(&mut out, INTERFACE_ID, &[&relay.spec.id])?;
    if let Some(remote_id) = &relay.spec.remote_id {
        put_option(&mut out, REMOTE_ID, &[&[0; 4], remote_id])?;
    }
    if !is_relayed {
        put_option(&mut out, CLIENT_LINK_LAYER_ADDRESS, &[&ETHERNET, &mac])?;
    }
    put_option(&mut out, RELAY_MESSAGE, &[message])?;
    Ok(out)
}

/// A server's message.
pub struct Reply<'m> {
    /// The link it is for, as we said.
    pub link: Ipv6Addr,
    /// Whom it is for.
    pub peer: Ipv6Addr,
    /// What we said of the interface.
    pub interface_id: Option<&'m [u8]>,
    /// What the peer gets.
    pub message: &'m [u8],
    /// The peer is a relay.
    pub is_to_relay: bool,
}

/// Reads a Relay-reply (RFC 8415 section 19.2).
pub fn read_reply(message: &[u8]) -> Result<Reply<'_>, DropReason> {
    const BAD: DropReason = DropReason::DhcpInvalid;
    if message.len() < RELAY_HEADER_BYTES || message[0] != RELAY_REPLY {
        return Err(BAD);
    }
    let (mut inner, mut interface_id) = (None, None);
    for option in (Options { rest: &message[RELAY_HEADER_BYTES..] }) {
        let slot = match option? {
            (RELAY_MESSAGE, value) => (&mut inner, value),
            (INTERFACE_ID, value) => (&mut interface_id, value),
            _ => continue,
        };
        if slot.0.replace(slot.1).is_some() {
            return Err(BAD);
        }
    }
    let inner: &[u8] = inner.ok_or(BAD)?;
    let peer = Ipv6Addr::from(*array::<16>(message, PEER));
    let kind = *inner.first().ok_or(BAD)?;
    // What only clients say: 1 to 12 but for those of servers.
    let is_from_client = kind == 0 || kind <= RELAY_FORWARD && !is_from_server(kind);
    if inner.len() < HEADER_BYTES || is_from_client || !is_host(peer) {
        return Err(BAD);
    }
    let link = Ipv6Addr::from(*array::<16>(message, LINK));
    Ok(Reply { link, peer, interface_id, message: inner, is_to_relay: kind == RELAY_REPLY })
}
