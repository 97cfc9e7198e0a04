//! Packet sockets (packet(7)) for the little that a node says and hears beside its workers: whole frames of one device,
//! only what a filter lets through.
//!
//! The kernel takes the outermost tag out of a received frame: which tag a frame has to have is for the filter to say.
//! Frames are sent as they are, tags included.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; each with its proof")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// linux/if_packet.h; since Linux 4.20.
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// linux/if_packet.h: with each frame comes a `tpacket_auxdata`.
const PACKET_AUXDATA: i32 = 8;
/// linux/if_packet.h: TP_STATUS_VLAN_VALID, of its first word.
const VLAN_VALID: u32 = 1 << 4;
/// linux/pkt_sched.h: TC_PRIO_CONTROL, which queueing disciplines send first.
const PRIORITY_CONTROL: i32 = 7;
/// Room for what comes in while its reader is kept from running: seconds of a busy link's advertisements.
const QUEUE_BYTES: i32 = 4 << 20;

/// One instruction of classic BPF (linux/filter.h): operation, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// A packet socket of one device. Never blocks.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one that gets what `filter` accepts of what the device receives.
    pub fn open(ifindex: u32, filter: &[Instruction]) -> io::Result<PacketSocket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: no frame comes before the filter is there.
        // SAFETY: takes three numbers, no memory.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created and owned by nobody else.
        let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut code: Vec<libc::sock_filter> = filter
            .iter()
            .map(|(code, jt, jf, k)| libc::sock_filter { code: *code, jt: *jt, jf: *jf, k: *k })
            .collect();
        let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
        socket.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        // Above the system's limit (net.core.rmem_max) with CAP_NET_ADMIN alone; otherwise as much as there is.
        if socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &QUEUE_BYTES).is_err() {
            socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &QUEUE_BYTES)?;
        }
        socket.set(libc::SOL_SOCKET, libc::SO_PRIORITY, &PRIORITY_CONTROL)?;
        // What else is sent on the device does not come back; before Linux 4.20 the receiver has to tell.
        let _ = socket.set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32);
        // SAFETY: all-zero is a value of this struct of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex as i32;
        // SAFETY: reads `address`, which lives across the call, and no more than its length.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: reads `value`, which lives across the call, and no more than its length; the filter that a
        // `sock_fprog` points to lives as long as it and is copied by the kernel.
        let done = unsafe {
            libc::setsockopt(self.0.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Length of the next frame, cut to the buffer; `None` if there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        // SAFETY: writes to `buffer`, which lives across the call, and no more than its length.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if len < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        Ok(Some(len as usize))
    }

    /// Has [`PacketSocket::receive_tagged`] say which tag the kernel has taken out.
    pub fn tell_tags(&self) -> io::Result<()> {
        self.set(libc::SOL_PACKET, PACKET_AUXDATA, &1i32)
    }

    /// As [`PacketSocket::receive`], and the tag (TCI) that the kernel has taken out of the frame.
    pub fn receive_tagged(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Option<u16>)>> {
        /// Bytes of a `cmsghdr`, and the place of `tp_vlan_tci` behind it.
        const HEADER: usize = size_of::<libc::cmsghdr>();
        const TCI: usize = HEADER + 16;
        // Aligned as a `cmsghdr` has to be.
        let mut control = [0u64; 8];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all-zero is a value of this struct of integers and pointers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: writes to `buffer` and `control`, which live across the call, and no more than their lengths.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        if len < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        // The only control message there is.
        let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.first_chunk()).copied();
        let kind = (word(HEADER - 8), word(HEADER - 4));
        let is_there = message.msg_controllen >= TCI + 2
            && kind == (Some(libc::SOL_PACKET.to_ne_bytes()), Some(PACKET_AUXDATA.to_ne_bytes()));
        let is_tagged = word(HEADER).is_some_and(|status| u32::from_ne_bytes(status) & VLAN_VALID != 0);
        let tci = u16::from_ne_bytes([bytes[TCI], bytes[TCI + 1]]);
        Ok(Some((len as usize, (is_there && is_tagged).then_some(tci))))
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: reads `frame`, which lives across the call, and no more than its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
