//! When an old snapshot may go: each worker says which generation it works with.
//!
//! The writer swaps the pointer ([`crate::worker::Node::tables`]), waits until every worker has noted the
//! new generation, and only then frees what the old one refers to. A worker takes the pointer, notes its
//! generation, and keeps to that snapshot until its next turn:
//!
//! ```text
//! writer: swap(new) .............. wait for all Seen >= new ... free(old)
//! worker: ... uses old | load -> new | note(new) | uses new ...
//! ```
//!
//! Note *after* load and use: what is noted is that the worker is done with everything older.
//!
//! With `--cfg loom` the tests go through every interleaving, and show that weaker orders are caught:
//! `scripts/test --only loom`.

#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// The newest generation a worker works with; everything it did with older ones lies behind it.
#[derive(Debug)]
pub struct Seen(AtomicU64);

impl Default for Seen {
    fn default() -> Seen {
        Seen(AtomicU64::new(0))
    }
}

impl Seen {
    /// The worker has taken the snapshot of `generation` over. Only the worker calls it.
    #[inline]
    pub fn note(&self, generation: u64) {
        // Release: our reads of the older snapshot are done before the writer may free it.
        self.0.store(generation, Ordering::Release);
    }

    /// What the worker has noted last.
    #[inline]
    pub fn generation(&self) -> u64 {
        // Acquire: pairs with `note`.
        self.0.load(Ordering::Acquire)
    }
}

/// True once every worker works with `generation` or a later one.
pub fn all_use<'a>(seen: impl IntoIterator<Item = &'a Seen>, generation: u64) -> bool {
    seen.into_iter().all(|seen| seen.generation() >= generation)
}

#[cfg(test)]
mod tests {
    #[cfg(not(loom))]
    #[test]
    fn the_slowest_worker_decides() {
        use super::{Seen, all_use};

        let seen = [Seen::default(), Seen::default()];
        assert!(all_use(&seen, 0));
        seen[0].note(2);
        assert!(!all_use(&seen, 1));
        seen[1].note(1);
        assert!(all_use(&seen, 1) && !all_use(&seen, 2));
    }

    #[cfg(loom)]
    mod models {
        use loom::cell::UnsafeCell;
        use loom::sync::Arc;
        use loom::sync::atomic::{AtomicBool, AtomicUsize};
        use loom::thread;

        use super::super::*;

        /// The first, and at most two that follow.
        const GENERATIONS: usize = 3;

        /// What is freed. Loom sees who touches the cell when, which is all that matters.
        struct Snapshot {
            content: UnsafeCell<()>,
            freed: AtomicBool,
        }

        /// Snapshots by generation; `current` stands for ArcSwap's pointer, swapped and loaded as it does.
        struct Model {
            current: AtomicUsize,
            snapshots: [Snapshot; GENERATIONS],
            seen: Vec<Seen>,
        }

        impl Model {
            fn new(workers: usize) -> Model {
                let snapshot = |_| Snapshot { content: UnsafeCell::new(()), freed: AtomicBool::new(false) };
                Model {
                    current: AtomicUsize::new(0),
                    snapshots: std::array::from_fn(snapshot),
                    seen: (0..workers).map(|_| Seen::default()).collect(),
                }
            }

            /// Fills the snapshot and puts it before the workers.
            fn publish(&self, new: usize, order: Ordering) -> usize {
                self.snapshots[new].content.with_mut(|_| ());
                self.current.swap(new, order)
            }

            fn free(&self, old: usize) {
                self.snapshots[old].content.with_mut(|_| ());
                self.snapshots[old].freed.store(true, Ordering::Relaxed);
            }
        }

        /// What a worker does in one turn, for the right order and for wrong ones.
        type Turn = fn(&Model, &Seen, &mut usize);

        /// As [`crate::worker::Worker::turn`].
        fn right(model: &Model, seen: &Seen, held: &mut usize) {
            *held = model.current.load(Ordering::Acquire);
            seen.note(*held as u64);
            burst(model, *held);
        }

        /// Looks at the snapshot as a burst does.
        fn burst(model: &Model, held: usize) {
            model.snapshots[held].content.with(|_| ());
            assert!(!model.snapshots[held].freed.load(Ordering::Relaxed), "a freed snapshot was used");
        }

        /// A writer publishes and frees as it goes, a worker takes turns until it has seen the last.
        fn run(published: usize, turn: Turn, swap: Ordering, all_use: fn(&[Seen], u64) -> bool) {
            let model = Arc::new(Model::new(1));
            let worker = thread::spawn({
                let model = Arc::clone(&model);
                move || {
                    let mut held = 0;
                    burst(&model, held);
                    while held < published {
                        let before = held;
                        turn(&model, &model.seen[0], &mut held);
                        if held == before {
                            thread::yield_now();
                        }
                    }
                }
            });
            for new in 1..=published {
                let old = model.publish(new, swap);
                while !all_use(&model.seen, new as u64) {
                    thread::yield_now();
                }
                model.free(old);
            }
            worker.join().expect("the worker");
        }

        /// Two workers, of which each takes two turns, and a writer who frees if he may, and else does not:
        /// nobody waits, so that three threads end before long.
        fn run_impatiently(turn: Turn, all_use: fn(&[Seen], u64) -> bool) {
            let model = Arc::new(Model::new(2));
            let threads: Vec<_> = (0..2)
                .map(|id| {
                    let model = Arc::clone(&model);
                    thread::spawn(move || {
                        let mut held = 0;
                        turn(&model, &model.seen[id], &mut held);
                        turn(&model, &model.seen[id], &mut held);
                    })
                })
                .collect();
            model.publish(1, Ordering::AcqRel);
            if all_use(&model.seen, 1) {
                model.free(0);
            }
            threads.into_iter().for_each(|thread| thread.join().expect("a worker"));
        }

        fn waits(seen: &[Seen], generation: u64) -> bool {
            all_use(seen, generation)
        }

        #[test]
        fn a_snapshot_is_freed_when_nobody_uses_it() {
            loom::model(|| run(2, right, Ordering::AcqRel, waits));
        }

        #[test]
        fn a_snapshot_is_freed_when_none_of_two_workers_uses_it() {
            loom::model(|| run_impatiently(right, waits));
        }

        // A model that cannot fail proves nothing: each weakening is caught.

        #[test]
        #[should_panic]
        fn noting_without_release_is_caught() {
            fn turn(model: &Model, seen: &Seen, held: &mut usize) {
                *held = model.current.load(Ordering::Acquire);
                seen.0.store(*held as u64, Ordering::Relaxed);
                burst(model, *held);
            }
            loom::model(|| run(1, turn, Ordering::AcqRel, waits));
        }

        #[test]
        #[should_panic]
        fn waiting_without_acquire_is_caught() {
            fn all_use(seen: &[Seen], generation: u64) -> bool {
                seen.iter().all(|seen| seen.0.load(Ordering::Relaxed) >= generation)
            }
            loom::model(|| run(1, right, Ordering::AcqRel, all_use));
        }

        #[test]
        #[should_panic]
        fn noting_before_the_last_burst_is_done_is_caught() {
            fn turn(model: &Model, seen: &Seen, held: &mut usize) {
                let next = model.current.load(Ordering::Acquire);
                seen.note(next as u64);
                burst(model, *held);
                *held = next;
            }
            loom::model(|| run(1, turn, Ordering::AcqRel, waits));
        }

        #[test]
        #[should_panic]
        fn not_waiting_for_the_second_worker_is_caught() {
            loom::model(|| run_impatiently(right, |seen, generation| all_use(&seen[..1], generation)));
        }

        #[test]
        #[should_panic]
        fn publishing_without_release_is_caught() {
            loom::model(|| run(1, right, Ordering::Relaxed, waits));
        }
    }
}
