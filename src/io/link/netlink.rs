//! Netlink (RFC 3549): requests as bytes, replies as attributes.
//!
//! Attributes are picked out one by one instead of decoding whole messages into structs: a kernel newer
//! than the decoder then costs nothing, where a strict decoder would lose the event.

use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr};

/// An acknowledgement (code 0) or an error. linux/netlink.h.
pub(super) const NLMSG_ERROR: u16 = 2;
/// The end of a dump. linux/netlink.h.
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 0x001;
pub(in crate::io) const NLM_F_ACK: u16 = 0x004;
/// The tables changed while they were dumped: the dump has holes and must be repeated.
pub(super) const NLM_F_DUMP_INTR: u16 = 0x010;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// nlmsghdr: length, type, flags, sequence, port.
const HEADER_BYTES: usize = 16;
/// The largest datagram we read. Link messages are 1 to 2 KB and dump parts at most 32 KB.
pub(super) const DATAGRAM_BYTES: usize = 64 * 1024;

/// The generic-netlink controller (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
/// cmd, version, reserved.
pub(super) const GENL_HEADER_BYTES: usize = 4;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The error a `NLMSG_ERROR` or `NLMSG_DONE` message carries; `Ok` for an acknowledgement.
    pub fn outcome(&self) -> io::Result<()> {
        match i32_at(self.payload, 0) {
            None | Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        }
    }
}

/// The messages of one datagram; ends at the first that is cut off.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = NetlinkBuffer::new_checked(rest).ok()?;
        let length = header.length() as usize;
        let (kind, flags) = (header.message_type(), header.flags());
        let payload = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, payload })
    })
}

/// The attributes in `bytes`, type and value; ends at the first that is cut off.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let kind = attribute.kind();
        (kind, attribute.into_inner().get(4..usize::from(attribute.length())).unwrap_or_default())
    })
}

/// The value of the first attribute of type `kind`.
pub(in crate::io) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(in crate::io) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A NUL-terminated string attribute.
pub(super) fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A request being put together.
#[derive(Clone, Debug)]
pub(in crate::io) struct Request(Vec<u8>);

impl Request {
    /// `fixed` is the protocol's own header (ifinfomsg, genlmsghdr ...).
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0; 4]); // length: set by `bytes`
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence and port: one request at a time per socket
        bytes.extend_from_slice(fixed);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Self(bytes)
    }

    /// A generic-netlink request.
    pub fn generic(family: u16, flags: u16, command: u8) -> Self {
        Self::new(family, flags, &[command, 1, 0, 0])
    }

    /// Appends one attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("attributes of ours are a few bytes");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The finished message.
    pub fn bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("requests of ours are a few hundred bytes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A socket of `protocol` in this thread's network namespace, connected to the kernel.
pub(super) fn socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Asks once and collects the payloads of the answer.
///
/// Never blocks: the kernel answers within `send` (and produces the parts of a dump within `recv`), so
/// an empty queue means that nothing more comes.
pub(in crate::io) fn ask(protocol: isize, request: Request) -> io::Result<Vec<Vec<u8>>> {
    let socket = socket(protocol)?;
    socket.send(&request.bytes(), 0)?;
    let mut payloads = Vec::new();
    let mut datagram: Vec<u8> = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        datagram.clear();
        socket.recv(&mut datagram, libc::MSG_DONTWAIT)?;
        for message in messages(&datagram) {
            match message.kind {
                NLMSG_ERROR | NLMSG_DONE => return message.outcome().map(|()| payloads),
                _ => payloads.push(message.payload.to_vec()),
            }
        }
    }
}

/// A generic-netlink family: its id and the ids of its multicast groups by name.
#[derive(Debug)]
pub(super) struct Family {
    pub id: u16,
    pub groups: Vec<(String, u32)>,
}

/// Looks up a generic-netlink family by name.
pub(super) fn family(name: &str) -> io::Result<Family> {
    let mut terminated = name.as_bytes().to_vec();
    terminated.push(0);
    let request = Request::generic(GENL_ID_CTRL, NLM_F_ACK, CTRL_CMD_GETFAMILY)
        .with(CTRL_ATTR_FAMILY_NAME, &terminated);
    let replies = ask(netlink_sys::protocols::NETLINK_GENERIC, request)?;
    let attrs = replies.first().and_then(|p| p.get(GENL_HEADER_BYTES..)).unwrap_or_default();
    let id = attribute(attrs, CTRL_ATTR_FAMILY_ID)
        .and_then(|v| u16_at(v, 0))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let groups = attributes(attribute(attrs, CTRL_ATTR_MCAST_GROUPS).unwrap_or_default())
        .filter_map(|(_, group)| {
            let name = attribute(group, CTRL_ATTR_MCAST_GRP_NAME).map(string)?;
            let id = attribute(group, CTRL_ATTR_MCAST_GRP_ID).and_then(|v| u32_at(v, 0))?;
            Some((name, id))
        })
        .collect();
    Ok(Family { id, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_together_is_taken_apart() {
        let bytes = Request::new(18, NLM_F_DUMP, &[7; 16]).with(3, b"eth0\0").with(4, &1500u32.to_ne_bytes());
        let bytes = bytes.bytes();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].kind, 18);
        assert_eq!(all[0].flags, NLM_F_DUMP | NLM_F_REQUEST);
        let attrs = &all[0].payload[16..];
        assert_eq!(attribute(attrs, 3).map(string).as_deref(), Some("eth0"));
        assert_eq!(attribute(attrs, 4).and_then(|v| u32_at(v, 0)), Some(1500));
        assert_eq!(attribute(attrs, 5), None);
    }

    #[test]
    fn cut_off_and_lying_lengths_end_the_walk_and_do_not_panic() {
        let whole = Request::new(16, 0, &[0; 16]).with(3, b"eth0\0").bytes();
        for end in 0..whole.len() {
            for message in messages(&whole[..end]) {
                let _ = attributes(message.payload.get(16..).unwrap_or_default()).count();
            }
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 4, 15, 16, 0x7f, 0xff] {
                let mut bad = whole.clone();
                bad[at] = value;
                for message in messages(&bad) {
                    let _ = message.outcome();
                    let _ = attributes(message.payload.get(16..).unwrap_or_default()).count();
                }
            }
        }
    }

    #[test]
    fn an_error_reply_is_an_errno() {
        let reply = Message { kind: NLMSG_ERROR, flags: 0, payload: &(-19i32).to_ne_bytes() };
        assert_eq!(reply.outcome().unwrap_err().raw_os_error(), Some(libc::ENODEV));
        let ack = Message { kind: NLMSG_ERROR, flags: 0, payload: &0i32.to_ne_bytes() };
        assert!(ack.outcome().is_ok());
    }
}
