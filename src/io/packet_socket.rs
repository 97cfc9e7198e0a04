//! Packet sockets (packet(7)) for the little that a node says and hears beside its workers: whole frames of one device,
//! only what a filter lets through.
//!
//! The kernel takes the outermost tag out of a received frame and gives it beside it (PACKET_AUXDATA); frames are sent
//! as they are, tags included.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; each with its proof")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// linux/if_packet.h; since Linux 4.20.
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// linux/pkt_sched.h: TC_PRIO_CONTROL, which queueing disciplines send first.
const PRIORITY_CONTROL: i32 = 7;
/// linux/if_packet.h: the tag beside the frame counts.
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// One instruction of classic BPF (linux/filter.h): operation, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// A frame received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// VLAN ID of the outermost tag, if there was one: it is not in the bytes.
    pub vid: Option<u16>,
}

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
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)?;
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

    /// The next frame, cut to the buffer; `None` if there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // Room for one message of auxiliary data, aligned as its header wants.
        let mut control = [0u64; 8];
        // SAFETY: all-zero is a value of this struct of integers and pointers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: `message` points to the buffers above with their lengths; all live across the call.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        if len < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        Ok(Some(Received { len: len as usize, vid: vid_of(&message) }))
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

fn vid_of(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: the kernel has filled in `message`, whose control buffer lives in the caller.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a whole header in that buffer, which is aligned for it.
    let header = unsafe { header.as_ref() }?;
    let wanted = (libc::SOL_PACKET, libc::PACKET_AUXDATA);
    let size = size_of::<libc::tpacket_auxdata>();
    // SAFETY: only computes a length.
    let least = unsafe { libc::CMSG_LEN(size as u32) };
    if (header.cmsg_level, header.cmsg_type) != wanted || (header.cmsg_len as usize) < least as usize {
        return None;
    }
    // SAFETY: the header lies in the control buffer.
    let data = unsafe { libc::CMSG_DATA(header) }.cast::<libc::tpacket_auxdata>();
    // SAFETY: the message is as long as this struct of integers, as was just looked at.
    let auxdata = unsafe { data.read_unaligned() };
    (auxdata.tp_status & TP_STATUS_VLAN_VALID != 0).then_some(auxdata.tp_vlan_tci & 0xfff)
}
