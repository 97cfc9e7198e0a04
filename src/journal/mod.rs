//! What outlives the process: the sessions of a node in a file in memory, written as they change, read at the next start.
//!
//! ```text
//! layout   what lies where in the file, and how an entry is written so that a torn one is found out
//! keeper   the worker's part: it writes what changed in a turn
//! reader   what an earlier process has left
//! ```
//!
//! What is kept is what the peer would be told ([`crate::flow::flow_record`]): each session that would be missed has a place
//! by its number, written where [`crate::replica`] would tell of it, in the very bytes that go over the wire. So a later
//! release reads what an earlier one has left as it understands an earlier peer, and what is read is installed as if a
//! peer had told it. Storing takes no lock and no system call, and needs nobody to be there: whatever ends the process
//! leaves what was stored.
//!
//! Every half minute the worker looks at all of its sessions and notes when their last packets came: what is read is as old
//! as that at most.

mod keeper;
mod layout;
mod reader;

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crossbeam::utils::CachePadded;

pub use keeper::Keeper;
pub use layout::{Header, NotOurs};
pub use reader::{Left, Slot, batch_of_names, names_of};

use crate::flow::Tick;
use crate::flow::flow_record::InTable;
use crate::mem::SharedWords;
use layout::{ALIVE, Place};

/// The file of a process that runs.
#[derive(Debug)]
pub struct Journal {
    words: SharedWords,
    header: Header,
    workers: Box<[CachePadded<Progress>]>,
}

/// What the control thread and a worker tell each other.
#[derive(Debug, Default)]
struct Progress {
    /// Looks at all sessions that are asked for, and the last of them that is done.
    asked: AtomicU32,
    done: AtomicU32,
    /// Sessions that are kept.
    kept: AtomicU64,
}

impl Journal {
    /// Makes the file as the header says. All memory is taken now.
    pub fn create(file: &File, header: Header) -> io::Result<Journal> {
        let words = SharedWords::create(file, header.words())?;
        header.store(&words);
        let workers = (0..header.workers).map(|_| CachePadded::default()).collect();
        Ok(Journal { words, header, workers })
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Sessions that are kept.
    pub fn kept(&self) -> u64 {
        self.workers.iter().map(|worker| worker.kept.load(Relaxed)).sum()
    }

    /// Has the workers write all their sessions; [`Journal::is_whole`] tells when they have.
    pub fn ask_all(&self) {
        for worker in &self.workers {
            worker.asked.fetch_add(1, Release);
        }
    }

    /// True if every worker has written all its sessions since it was asked.
    pub fn is_whole(&self) -> bool {
        self.workers.iter().all(|worker| worker.done.load(Acquire) == worker.asked.load(Relaxed))
    }

    /// The process is alive.
    pub fn note_alive(&self, now: Tick) {
        self.words[ALIVE].store(now.0.into(), Relaxed);
    }

    fn note_highest(&self, worker: usize, table: InTable, session: u32) {
        self.header.highest(&self.words, worker, table).store(session.into(), Release);
    }

    fn place(&self, worker: usize, table: InTable, session: u32) -> Place<'_> {
        self.header.place(&self.words, worker, table, session)
    }
}
