//! Real-time priority of the calling thread (sched(7)).
#![allow(unsafe_code, reason = "a system call without a safe wrapper")]

use std::io;

/// Before all ordinary threads, behind the kernel's own of the usual priority 50.
const PRIORITY: i32 = 40;

/// Has the calling thread run as soon as it has something to do, whatever else wants its CPU.
pub fn raise() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: reads `parameters`, which lives across the call; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
