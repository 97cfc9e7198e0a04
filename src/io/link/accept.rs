//! What a device lets in: a network card drops frames to other MAC addresses than its own, before any program sees
//! them. A packet socket's memberships (packet(7)) widen that, and end with the process, however it ends.
//!
//! Cards that cannot match further addresses are switched to promiscuous mode by the kernel.
#![allow(unsafe_code, reason = "three system calls without a safe wrapper; each with its proof")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{self, attribute, u32_at};
use super::probe::{Trial, get_link};
use super::watch::{IFINFO_BYTES, IfIndex};

// linux/if_link.h
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_ALLMULTI: u16 = 61;

/// A locally administered MAC address that nobody has: for a trial.
const SOME_MAC: [u8; 6] = [0x02, 0x53, 0x47, 0xd0, 0xc7, 0x00];

/// The MAC addresses and groups that a device lets in for us, as long as this lives.
#[derive(Debug)]
pub struct Accepted {
    socket: OwnedFd,
    ifindex: u32,
    macs: Vec<[u8; 6]>,
}

/// What a device lets in just now, by whosever memberships, and whether it takes ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// How many want all groups; `None` where the kernel does not tell (before Linux 6.1).
    pub all_groups: Option<u32>,
    /// How many want all frames.
    pub promiscuous: u32,
    /// Memberships as `run` takes them.
    pub trial: Trial,
    /// Whether the device becomes promiscuous by one more MAC address; `None` where that was not tried.
    pub address_needs_all: Option<bool>,
}

impl Admission {
    /// Asks, and nothing else.
    pub(super) fn of(ifindex: IfIndex) -> io::Result<Admission> {
        let replies = netlink::ask(NETLINK_ROUTE, get_link(ifindex))?;
        let none = || io::Error::from_raw_os_error(libc::ENODEV);
        let attributes = replies.first().and_then(|payload| payload.get(IFINFO_BYTES..)).ok_or_else(none)?;
        let count = |kind| attribute(attributes, kind).and_then(|value| u32_at(value, 0));
        Ok(Admission {
            all_groups: count(IFLA_ALLMULTI),
            promiscuous: count(IFLA_PROMISCUITY).unwrap_or(0),
            trial: Trial::NotTried,
            address_needs_all: None,
        })
    }

    /// Takes memberships as `run` does, for a moment.
    pub(super) fn try_out(&mut self, ifindex: IfIndex) {
        let tried = Accepted::groups(ifindex).and_then(|mut accepted| {
            accepted.set(&[SOME_MAC])?;
            Admission::of(ifindex)
        });
        self.address_needs_all = tried.as_ref().ok().map(|with| with.promiscuous > self.promiscuous);
        self.trial = Trial::of(tried);
    }
}

impl Accepted {
    /// All groups of the device, beside its own address: neighbour discovery and VRRP come to groups (RFC 2464
    /// section 7), and the kernel joins none of ours.
    pub fn groups(ifindex: u32) -> io::Result<Accepted> {
        // Protocol 0: no frame is ever given to this socket.
        // SAFETY: takes three numbers, no memory.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created and owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let accepted = Accepted { socket, ifindex, macs: Vec::new() };
        accepted.change(libc::PACKET_ADD_MEMBERSHIP, libc::PACKET_MR_ALLMULTI, [0; 6])?;
        Ok(accepted)
    }

    /// From now on these addresses beside the device's own, and no others.
    pub fn set(&mut self, wanted: &[[u8; 6]]) -> io::Result<()> {
        // First in, then out: an address that stays is never shut out.
        for mac in wanted {
            if !self.macs.contains(mac) {
                self.change(libc::PACKET_ADD_MEMBERSHIP, libc::PACKET_MR_UNICAST, *mac)?;
                self.macs.push(*mac);
            }
        }
        let gone: Vec<[u8; 6]> = self.macs.iter().filter(|mac| !wanted.contains(mac)).copied().collect();
        for mac in gone {
            self.change(libc::PACKET_DROP_MEMBERSHIP, libc::PACKET_MR_UNICAST, mac)?;
            self.macs.retain(|kept| *kept != mac);
        }
        Ok(())
    }

    fn change(&self, what: i32, kind: i32, mac: [u8; 6]) -> io::Result<()> {
        let mut address = [0; 8];
        address[..6].copy_from_slice(&mac);
        let request = libc::packet_mreq {
            mr_ifindex: self.ifindex as i32,
            mr_type: kind as u16,
            mr_alen: 6,
            mr_address: address,
        };
        // SAFETY: reads `request`, which lives across the call, and no more than its length.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                what,
                (&raw const request).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
