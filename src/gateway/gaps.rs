//! Gaps between a worker's turns, and how much of a gap was its own: the rest it stood on the run queue,
//! because the scheduler gave its CPU to somebody else.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// After a turn with packets a gap from here on may hide a wait: a burst takes a few microseconds, and 30 to 40
/// where the kernel copies it (veth).
const LONG: Duration = Duration::from_micros(20);

/// After a turn without packets: such a turn takes less than one.
const LONG_IDLE: Duration = Duration::from_micros(5);

/// What a worker promises: no gap of its own as long as this, whatever is being swapped. A receive ring of 1,024
/// frames holds 50 microseconds at 20 Mpps.
pub(super) const TARGET: Duration = Duration::from_micros(50);

/// A worker's view of its own time on the run queue. Made on the worker's thread.
///
/// Reading it is a system call, so it is asked only after a long gap: in short, never on a quiet machine.
pub(super) struct RunQueue {
    /// Kept open: `/proc/thread-self` means the thread that opened it.
    schedstat: Option<File>,
    /// The kernel's figure as of the last look.
    waited: Duration,
    /// A gap has passed that may hold waiting time and was not looked into.
    stale: bool,
}

impl RunQueue {
    pub(super) fn of_this_thread() -> RunQueue {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        let waited = schedstat.as_ref().and_then(read).unwrap_or_default();
        RunQueue { schedstat, waited, stale: false }
    }

    /// How much of `gap`, which has just passed, was spent waiting for the CPU. Gaps that are neither longer than
    /// `longest` (the longest of our own so far) nor over the target count as our own while there is work.
    #[inline]
    pub(super) fn waited_within(&mut self, gap: Duration, after_work: bool, longest: Duration) -> Duration {
        self.stale |= gap >= if after_work { LONG } else { LONG_IDLE };
        if !self.stale || (after_work && (gap < LONG || gap <= longest && gap < TARGET)) {
            return Duration::ZERO;
        }
        self.look().min(gap)
    }

    /// What was added since the last look.
    #[cold]
    fn look(&mut self) -> Duration {
        self.stale = false;
        let Some(waited) = self.schedstat.as_ref().and_then(read) else { return Duration::ZERO };
        let more = waited.saturating_sub(self.waited);
        self.waited = waited;
        more
    }

    /// After a sleep: what was waited until then is nobody's gap.
    pub(super) fn slept(&mut self) {
        self.stale = true;
    }
}

/// The second of the file's three numbers: nanoseconds on the run queue (Documentation/scheduler/sched-stats).
fn read(schedstat: &File) -> Option<Duration> {
    let mut text = [0; 64];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    let number = text[..len].split(|byte| *byte == b' ').nth(1)?;
    let digit = |sum: u64, byte: &u8| sum * 10 + u64::from(byte - b'0');
    Some(Duration::from_nanos(number.iter().filter(|byte| byte.is_ascii_digit()).fold(0, digit)))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Two threads that spin on one CPU: each waits for the other, and knows it.
    #[test]
    fn waiting_for_the_cpu_is_no_gap_of_ours() {
        let core = core_affinity::get_core_ids().expect("CPUs")[0];
        let spin = move || {
            core_affinity::set_for_current(core);
            let mut run_queue = RunQueue::of_this_thread();
            let (began, mut waited, mut own) = (Instant::now(), Duration::ZERO, Duration::ZERO);
            let mut last = began;
            while began.elapsed() < Duration::from_millis(300) {
                let now = Instant::now();
                let part = run_queue.waited_within(now - last, false, Duration::ZERO);
                waited += part;
                own += now - last - part;
                last = now;
            }
            (waited, own)
        };
        let other = std::thread::spawn(spin);
        let (waited, own) = spin();
        other.join().expect("the other");
        assert!(waited > Duration::from_millis(20), "waited {waited:?}, ran {own:?}");
        assert!(own > Duration::ZERO && waited + own < Duration::from_secs(30));
    }

    #[test]
    fn while_there_is_work_only_a_longest_gap_or_one_over_the_target_is_looked_into() {
        let mut run_queue = RunQueue::of_this_thread();
        let longest = Duration::from_micros(40);
        run_queue.waited_within(Duration::from_micros(10), true, longest);
        assert!(!run_queue.stale, "short");
        run_queue.waited_within(Duration::from_micros(30), true, longest);
        assert!(run_queue.stale, "not the longest: looked into when there is time");
        run_queue.waited_within(Duration::from_micros(1), false, longest);
        assert!(!run_queue.stale, "now there was");
        run_queue.stale = true;
        run_queue.waited_within(Duration::from_micros(45), true, longest);
        assert!(!run_queue.stale, "a new longest");
        run_queue.waited_within(TARGET, true, Duration::from_millis(1));
        assert!(!run_queue.stale, "over the target");
    }
}
