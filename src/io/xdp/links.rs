//! BPF links of a process that we take over from: held by us as well, they stay on their devices when it ends, and their
//! program is replaced by ours without a moment in between. Four commands of bpf(2), which `aya` keeps to itself.
#![allow(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;
/// `enum bpf_link_type`.
const BPF_LINK_TYPE_XDP: u32 = 6;
/// Links looked at: far more than a machine has.
const MOST: usize = 100_000;

/// The first words of `struct bpf_link_info` for a link of XDP: type, id, program, padding, device.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: [u32; 27],
}

/// A link of XDP.
#[derive(Debug)]
pub(super) struct Link {
    pub ifindex: u32,
    /// Number of its program.
    pub program: u32,
    pub fd: OwnedFd,
}

fn bpf<const WORDS: usize>(command: libc::c_int, words: &mut [u32; WORDS]) -> io::Result<libc::c_int> {
    // SAFETY: `union bpf_attr` is plain integers; the kernel reads and writes at most the length that is told, of a live
    // array; addresses in it are of live values of the length that stands beside them (`info`).
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(words), size_of::<[u32; WORDS]>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as libc::c_int) }
}

fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::default();
    let address = std::ptr::from_mut(&mut info) as u64;
    let mut words = [fd.as_raw_fd() as u32, size_of::<Info>() as u32, address as u32, (address >> 32) as u32];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut words)?;
    Ok(info)
}

/// The links of XDP that there are. Needs CAP_SYS_ADMIN.
pub(super) fn all() -> io::Result<Vec<Link>> {
    let (mut id, mut links) = (0, Vec::new());
    for _ in 0..MOST {
        let mut words = [id, 0, 0];
        match bpf(BPF_LINK_GET_NEXT_ID, &mut words) {
            Ok(_) => id = words[1],
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
        let fd = match bpf(BPF_LINK_GET_FD_BY_ID, &mut [id, 0, 0]) {
            // SAFETY: a fresh descriptor that nobody else owns.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            // Gone in the meantime.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let info = info(std::os::fd::AsFd::as_fd(&fd))?;
        if info.kind == BPF_LINK_TYPE_XDP {
            links.push(Link { ifindex: info.ifindex, program: info.program, fd });
        }
    }
    Ok(links)
}

/// Has the link's device run another program from now on.
pub(super) fn update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut words = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    bpf(BPF_LINK_UPDATE, &mut words).map(drop)
}
