//! Somebody who reads all sessions again and again, in some windows: what that costs the workers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::flow::scan::Filter;
use crate::reader::{Desk, Place, Task};
use crate::time::Nanos;

/// As the control socket asks: no worker is held longer by one question.
const PORTION: Duration = Duration::from_millis(20);
/// For a worker that was not given a CPU.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the reader and the workers know of each other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    is_wanted: AtomicBool,
    is_idle: AtomicBool,
    is_over: AtomicBool,
    sessions: AtomicU64,
}

impl Reader {
    /// Reads while it is wanted, until it is over. In a thread of its own.
    pub fn run(&self, desks: &[Desk], clock: impl Fn() -> Nanos) {
        let (mut worker, mut from) = (0, Place::default());
        while !self.is_over.load(Ordering::Acquire) {
            let is_wanted = self.is_wanted.load(Ordering::Acquire);
            self.is_idle.store(!is_wanted, Ordering::Release);
            if !is_wanted {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            let until = clock().plus(PORTION);
            let end = desks[worker].read(
                Task::List(Filter::default(), u32::MAX),
                from,
                until,
                PATIENCE,
                || {},
                |_| {
                    self.sessions.fetch_add(1, Ordering::Relaxed);
                },
            );
            match end.expect("the workers turn").next {
                Some(next) => from = next,
                None => (worker, from) = ((worker + 1) % desks.len(), Place::default()),
            }
        }
    }

    /// Begins or ends a window in which it reads.
    pub fn want(&self, is_wanted: bool) {
        if is_wanted {
            self.is_idle.store(false, Ordering::Release);
        }
        self.is_wanted.store(is_wanted, Ordering::Release);
    }

    /// True if no worker has anything to do for it.
    pub fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Acquire)
    }

    /// No window comes any more.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Sessions it has read.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }
}
