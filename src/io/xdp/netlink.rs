//! What the kernel has attached to a device, and taking a leftover off: two rtnetlink requests.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::io::link::netlink::{NLM_F_ACK, Request, ask, attribute, u32_at};

/// linux/rtnetlink.h.
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
/// ifinfomsg: family, padding, type, index, flags, change.
const IFINFO_BYTES: usize = 16;
/// linux/if_link.h.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
/// The attribute holds attributes. linux/netlink.h.
const NLA_F_NESTED: u16 = 0x8000;

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
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
    let answers = ask(NETLINK_ROUTE, Request::new(RTM_GETLINK, NLM_F_ACK, &ifinfo(ifindex)))?;
    let xdp = answers.iter().find_map(|link| attribute(link.get(IFINFO_BYTES..)?, IFLA_XDP));
    let program = |kind, generic| {
        let id = attribute(xdp?, kind).and_then(|id| u32_at(id, 0))?;
        Some(Attached { id, generic })
    };
    Ok(program(IFLA_XDP_DRV_PROG_ID, false).or_else(|| program(IFLA_XDP_SKB_PROG_ID, true)))
}

/// Takes the program off that was attached by netlink. One attached by a live link answers EBUSY.
pub(super) fn detach(ifindex: u32, generic: bool) -> io::Result<()> {
    let mode = if generic { SKB_MODE } else { DRV_MODE };
    let parts = [(IFLA_XDP_FD, (-1i32).to_ne_bytes()), (IFLA_XDP_FLAGS, mode.to_ne_bytes())];
    // Each part is an attribute of 8 bytes: length, type, value.
    let part =
        |(kind, value): (u16, [u8; 4])| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat();
    let request = Request::new(RTM_SETLINK, NLM_F_ACK, &ifinfo(ifindex))
        .with(IFLA_XDP | NLA_F_NESTED, &parts.map(part).concat());
    ask(NETLINK_ROUTE, request).map(drop)
}

fn ifinfo(ifindex: u32) -> [u8; IFINFO_BYTES] {
    let mut bytes = [0; IFINFO_BYTES];
    bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}
