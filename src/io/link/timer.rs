//! A repeating timer as a file descriptor (timerfd_create(2)), so that one poll loop holds it too.
#![allow(unsafe_code, reason = "three system calls without a safe wrapper; each with its proof")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Readable when it has gone off.
#[derive(Debug)]
pub(super) struct Timer(File);

impl Timer {
    /// A timer that is not running.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes a clock and flags, no memory.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(File::from(fd)))
    }

    /// Goes off every `period` from now; never, when it is zero.
    pub fn repeat(&self, period: Duration) -> io::Result<()> {
        let period =
            libc::timespec { tv_sec: period.as_secs().cast_signed(), tv_nsec: period.subsec_nanos().into() };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: reads `times`, which lives across the call; a null old value is allowed.
        let set =
            unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const times, std::ptr::null_mut()) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has it gone off since the last call?
    pub fn has_fired(&mut self) -> bool {
        self.0.read_exact(&mut [0; 8]).is_ok()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
