//! Who is at the other end of a Unix socket.
#![allow(unsafe_code, reason = "one system call without a safe wrapper, with its proof")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Most groups that are looked at: the kernel's NGROUPS_MAX.
const MOST: usize = 65_536;

/// The groups that whoever connected was in when it did (SO_PEERGROUPS, Linux 4.13), beside its own one; none where the
/// kernel does not say.
pub fn groups(socket: BorrowedFd<'_>) -> Vec<u32> {
    let mut gids = vec![0u32; 32];
    loop {
        let mut bytes = size_of_val(&gids[..]) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes, which is the length of `gids`, and says in `bytes` how many
        // there are.
        let done = unsafe {
            let place = gids.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, place, &mut bytes)
        };
        let found = bytes as usize / size_of::<u32>();
        if done == 0 {
            gids.truncate(found);
            return gids;
        }
        let is_short = std::io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE);
        if !is_short || found <= gids.len() || found > MOST {
            return Vec::new();
        }
        gids.resize(found, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn groups_are_those_of_this_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("s")).expect("a socket");
        let _client = UnixStream::connect(folder.path().join("s")).expect("a connection");
        let (server, _) = listener.accept().expect("a client");
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("a line of it");
        let mut own: Vec<u32> = line.split_whitespace().map(|gid| gid.parse().expect("a number")).collect();
        let mut said = groups(server.as_fd());
        own.sort_unstable();
        said.sort_unstable();
        assert_eq!(said, own);
    }
}
