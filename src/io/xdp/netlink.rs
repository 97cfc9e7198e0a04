//! What the kernel has attached to a device, and taking a leftover off: two rtnetlink requests.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`.
const SKB_MODE: u32 = 2;
const DRV_MODE: u32 = 4;

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub id: u32,
    pub generic: bool,
}

/// The program on the device, the native one if there are two.
pub(super) fn attached(ifindex: u32) -> io::Result<Option<Attached>> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    let mut found = None;
    exchange(RouteNetlinkMessage::GetLink(request), |answer| {
        let RouteNetlinkMessage::NewLink(link) = answer else { return };
        for attribute in link.attributes {
            let LinkAttribute::Xdp(parts) = attribute else { continue };
            for part in parts {
                match part {
                    LinkXdp::DrvProgId(id) => found = Some(Attached { id, generic: false }),
                    LinkXdp::SkbProgId(id) if found.is_none() => {
                        found = Some(Attached { id, generic: true });
                    }
                    _ => {}
                }
            }
        }
    })?;
    Ok(found)
}

/// Takes the program off that was attached by netlink. One attached by a live link answers EBUSY.
pub(super) fn detach(ifindex: u32, generic: bool) -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    let mode = if generic { SKB_MODE } else { DRV_MODE };
    request.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(mode)]));
    exchange(RouteNetlinkMessage::SetLink(request), |_| {})
}

/// Sends one request with an acknowledgement asked for, and hands out the answers before it.
fn exchange(request: RouteNetlinkMessage, mut answer: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::Error(error) => return error.code.map_or(Ok(()), |_| Err(error.to_io())),
                NetlinkPayload::InnerMessage(inner) => answer(inner),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or(&[]);
        }
    }
}
