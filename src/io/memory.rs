//! Ports in memory: what benchmarks and tests send and receive through.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::io::Port;
use crate::mem::{FramePool, Frames};

/// Frames that come in again and again, copied from memory that lies in one piece.
#[derive(Clone, Debug, Default)]
pub struct Template {
    bytes: Vec<u8>,
    /// Start and length of each frame.
    frames: Vec<(u32, u32)>,
}

impl Template {
    /// Appends a frame.
    pub fn push(&mut self, frame: &[u8]) {
        self.frames.push((self.bytes.len() as u32, frame.len() as u32));
        self.bytes.extend_from_slice(frame);
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True without frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frame number `index`.
    pub fn frame(&self, index: usize) -> &[u8] {
        let (start, len) = self.frames[index];
        &self.bytes[start as usize..][..len as usize]
    }

    /// Bytes of all frames.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Where sent frames go.
#[derive(Clone, Debug, Default)]
pub enum Sink {
    /// Back into the pool.
    #[default]
    Discard,
    /// Kept as bytes, for tests.
    Keep(Arc<Mutex<Vec<Vec<u8>>>>),
}

/// A port in memory.
#[derive(Debug)]
pub struct MemoryPort {
    template: Arc<Template>,
    next: usize,
    /// Frames still to come in; `None` = for ever.
    remaining: Option<usize>,
    sink: Sink,
    sent: u64,
}

impl Default for MemoryPort {
    /// Receives nothing, and puts what is sent back into the pool.
    fn default() -> MemoryPort {
        MemoryPort::new(Arc::default(), false, Sink::Discard)
    }
}

impl MemoryPort {
    /// A port that receives the template's frames, once or for ever.
    pub fn new(template: Arc<Template>, for_ever: bool, sink: Sink) -> MemoryPort {
        let remaining = if for_ever && !template.is_empty() { None } else { Some(template.len()) };
        MemoryPort { template, next: 0, remaining, sink, sent: 0 }
    }

    /// As [`MemoryPort::new`], beginning with frame `first`: workers share a template and start apart.
    pub fn starting_at(mut self, first: usize) -> MemoryPort {
        self.next = first % self.template.len().max(1);
        self
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let before = frames.len();
        let limit = frames.remaining_capacity().min(self.remaining.unwrap_or(usize::MAX));
        for _ in 0..limit {
            let Some(frame) = pool.take_filled(self.template.frame(self.next)) else { break };
            frames.push(frame);
            self.next += 1;
            if self.next == self.template.len() {
                self.next = 0;
            }
        }
        let count = frames.len() - before;
        if let Some(remaining) = &mut self.remaining {
            *remaining -= count;
        }
        count
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let count = frames.len();
        self.sent += count as u64;
        for frame in frames.drain(..) {
            if let Sink::Keep(kept) = &self.sink {
                kept.lock().expect("no holder panics").push(frame.chain_bytes());
            }
            pool.put(frame);
        }
        count
    }
}

/// A cable in memory between a port of the gateway, with a queue for each worker, and whoever holds this end.
#[derive(Clone, Debug, Default)]
pub struct Cable(Arc<Mutex<Wires>>);

#[derive(Debug, Default)]
struct Wires {
    /// By queue.
    to_gateway: Vec<VecDeque<Vec<u8>>>,
    from_gateway: Vec<Vec<u8>>,
}

impl Cable {
    /// A cable to a port of `queues` queues.
    pub fn new(queues: usize) -> Cable {
        let to_gateway = vec![VecDeque::new(); queues];
        Cable(Arc::new(Mutex::new(Wires { to_gateway, from_gateway: Vec::new() })))
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends frames to one of the gateway's queues.
    ///
    /// # Panics
    ///
    /// If the port has no such queue.
    pub fn send(&self, queue: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        self.wires().to_gateway[queue].extend(frames);
    }

    /// What has come from the gateway since the last call.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.wires().from_gateway)
    }

    /// The gateway's end: its queue number `queue`, that takes at most `budget` frames in a turn.
    pub fn end(&self, queue: usize, budget: usize) -> CableEnd {
        CableEnd { cable: self.clone(), queue, budget }
    }
}

/// A queue of the gateway on a [`Cable`].
#[derive(Debug)]
pub struct CableEnd {
    cable: Cable,
    queue: usize,
    budget: usize,
}

impl Port for CableEnd {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let mut wires = self.cable.wires();
        let waiting = &mut wires.to_gateway[self.queue];
        let before = frames.len();
        let limit = self.budget.min(frames.remaining_capacity());
        for _ in 0..limit {
            let Some(frame) = waiting.front().and_then(|bytes| pool.take_filled(bytes)) else { break };
            waiting.pop_front();
            frames.push(frame);
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let mut wires = self.cable.wires();
        let count = frames.len();
        for frame in frames.drain(..) {
            wires.from_gateway.push(frame.chain_bytes());
            pool.put(frame);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{ChunkSize, PacketMemory};

    #[test]
    fn a_default_port_receives_nothing() {
        let (_memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        assert_eq!(MemoryPort::default().receive(&mut pools[0], &mut Frames::new()), 0);
        let empty = Arc::new(Template::default());
        assert_eq!(
            MemoryPort::new(empty, true, Sink::Discard).receive(&mut pools[0], &mut Frames::new()),
            0,
            "nothing for ever is nothing"
        );
    }
}
