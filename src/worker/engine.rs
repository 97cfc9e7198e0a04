//! The part of a worker that runs packets through the pipeline.

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::node::{Arrival, Node, Outgoing, Spoken, Waiting};
use super::{MAX_MEMBERS, NO_QUEUE, Queue};
use crate::flow::{Flows, Held};
use crate::mem::{BURST, Frame, FramePool, Frames};
use crate::packet::{Burst, DropReason, Ingress, Meta, Packet, Pass, Verdict};
use crate::pipeline::review::Review;
use crate::pipeline::slow::Parked;
use crate::pipeline::{self, Context, SlowPath};
use crate::reader::Reading;
use crate::replica::Replication;
use crate::tables::compile::MAX_PORTS;
use crate::tables::{NO_INTERFACE, Tables};
use crate::telemetry::events::Event;
use crate::telemetry::{WorkerCounters, add};

/// The part of a worker that runs packets through the pipeline.
pub(super) struct Engine {
    pub(super) id: usize,
    pub(super) pool: FramePool,
    pub(super) slow: SlowPath,
    pub(super) flows: Flows,
    /// What a command reads.
    pub(super) reading: Reading,
    /// Sessions decided by older tables.
    pub(super) review: Review,
    /// Sessions that the peer has as well.
    pub(super) replication: Replication,
    /// By port and member: index into the worker's queues, or `NO_QUEUE`.
    pub(super) routes: Box<[u16; MAX_PORTS * MAX_MEMBERS]>,
    /// Frames for other workers' queues, by worker.
    pub(super) outgoing: Box<[ArrayVec<Outgoing, BURST>]>,
    /// Packets of other workers' flows, by worker.
    pub(super) elsewhere: Box<[ArrayVec<Arrival, BURST>]>,
    /// Packets that wait for another worker's mapping.
    pub(super) waiting: Vec<Waiting>,
    /// Generation of the tables it works with, if with any yet.
    pub(super) generation: Option<u64>,
    /// Reasons of which this burst has left a copy in the recorder.
    pub(super) recorded: u128,
    /// The null pipeline of benchmarks: frames go straight back into the pool.
    pub(super) null_pipeline: bool,
}

impl Engine {
    pub(super) fn counters<'n>(&self, node: &'n Node) -> &'n WorkerCounters {
        &node.counters[self.id]
    }

    pub(super) fn received(&self, count: usize, node: &Node) {
        add(&self.counters(node).received, count as u64);
        add(&self.counters(node).bursts, 1);
    }

    /// What of new tables the worker keeps by itself.
    #[cold]
    pub(super) fn take_on(&mut self, tables: &Tables) {
        self.generation = Some(tables.generation);
        self.flows.nat.set_limits(tables.policy.nat);
        self.slow.take_on(tables);
    }

    /// Runs frames that came from one place through the pipeline.
    pub(super) fn burst(
        &mut self,
        frames: &mut Frames,
        ingress: Ingress,
        pass: Pass,
        cx: &Context<'_>,
        node: &Node,
        queues: &mut [Queue],
    ) {
        let cx = &Context { ingress, pass, ..*cx };
        self.flows.strangers.note(frames.len());
        self.run(frames, cx, node, queues);
        self.send_emitted(cx, node, queues);
        if self.flows.fragments.has_settled() {
            self.settle_fragments(cx, node, queues);
        }
    }

    /// Fragments that were held: they follow the first of their datagram, or are lost.
    #[cold]
    fn settle_fragments(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut frames = Frames::new();
        while let Some((held, lost)) = self.flows.fragments.next_settled() {
            if let Some(reason) = lost {
                self.lose_frame(held.frame, node, reason);
                continue;
            }
            frames.push(held.frame);
            let cx = Context { ingress: held.ingress, pass: Pass::Again, ..*cx };
            self.run(&mut frames, &cx, node, queues);
            self.send_emitted(&cx, node, queues);
        }
    }

    fn run(&mut self, frames: &mut Frames, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut burst = Burst::new();
        burst.extend(frames.drain(..).map(|frame| Packet { frame, meta: Meta::FRESH }));
        pipeline::run(&mut burst, cx, &mut self.flows);
        self.recorded = 0;
        // Most packets leave where the one before left.
        let (mut last_egress, mut last_queue) = (NO_INTERFACE, 0);
        for packet in burst.iter_mut() {
            let egress = packet.meta.egress;
            if packet.meta.verdict != Verdict::Forward {
                self.settle(packet, cx, node);
            } else if egress == last_egress && !packet.frame.is_chained() {
                self.stage(packet.frame.take(), last_queue, node, queues);
            } else if let Some(queue) = self.leave(packet, cx, node, queues) {
                (last_egress, last_queue) = (egress, queue);
            }
        }
        if self.flows.v4.has_said() || self.flows.v6.has_said() {
            self.speak(cx);
        }
    }

    /// Sends what proxied connections of the burst need.
    #[cold]
    fn speak(&mut self, cx: &Context<'_>) {
        let Engine { flows, slow, pool, .. } = self;
        for said in flows.v4.take_said().chain(flows.v6.take_said()) {
            slow.speak(&said, cx, pool);
        }
    }

    /// Sends what is said without a packet: to servers that have not answered, to ends of connections that are over.
    #[cold]
    fn remind(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        self.speak(cx);
        self.send_emitted(cx, node, queues);
    }

    /// Does with a packet what has to be done, other than to send it as it is.
    #[inline(never)]
    fn settle(&mut self, packet: &mut Packet, cx: &Context<'_>, node: &Node) {
        let (frame, meta) = (packet.frame.take(), packet.meta);
        let (worker, pass) = match meta.verdict {
            Verdict::Held => return,
            Verdict::Elsewhere(worker) => (worker, Pass::Handed),
            Verdict::Gather(worker) => (worker, Pass::Gathered),
            Verdict::Borrow => return self.borrow(frame, cx, node),
            _ => {
                let packet = Packet { frame, meta };
                if let Some((packet, reason)) = self.slow.handle(packet, cx, &mut self.pool, &node.limits) {
                    self.lose(packet, reason, cx, node);
                }
                return;
            }
        };
        self.pass_on(Arrival { frame, ingress: cx.ingress, pass }, worker.into(), node);
    }

    /// Sends what the slow path made: finished frames, then packets of our own, which may make more.
    fn send_emitted(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut frames = Frames::new();
        while !self.slow.emit.ready.is_empty() || !self.slow.emit.own.is_empty() {
            let mut ready = std::mem::take(&mut self.slow.emit.ready);
            for (frame, egress) in ready.drain(..) {
                let port = cx.tables.interface(egress).port;
                self.transmit(frame, port, None, cx.tables, node, queues);
            }
            // Keeps the allocation for the next burst.
            self.slow.emit.ready = ready;
            let Some((_, vrf)) = self.slow.emit.own.first() else { continue };
            let vrf = *vrf;
            let count = self.slow.emit.own.iter().take(BURST).take_while(|(_, other)| *other == vrf).count();
            frames.extend(self.slow.emit.own.drain(..count).map(|(frame, _)| frame));
            let cx = Context { ingress: Ingress::Own { vrf }, pass: Pass::First, ..*cx };
            self.run(&mut frames, &cx, node, queues);
        }
    }

    /// Leaves what has happened for the log.
    #[inline]
    fn report(&mut self, node: &Node) {
        let nat = &mut self.flows.nat;
        if nat.has_events() || !nat.session_events.is_empty() {
            while let Some(event) = nat.pop_event() {
                node.events.push(self.id, Event::Block(event));
            }
            for event in nat.session_events.drain(..) {
                node.events.push(self.id, Event::Session(event));
            }
            let lost = nat.take_events_lost();
            if node.events.is_wanted() {
                node.events.lose(lost);
            }
        }
    }

    /// Decides sessions again that were decided by older tables. True if some are left.
    pub(super) fn review(&mut self, busy: bool, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) -> bool {
        if !self.review.is_due(cx.tables) {
            return false;
        }
        let is_more = self.review.step(busy, cx, &mut self.flows);
        // Ends of connections that are over.
        if self.flows.v4.has_said() || self.flows.v6.has_said() {
            self.remind(cx, node, queues);
        }
        is_more
    }

    /// Tells the peer what has changed, keeps it, and does what the peer tells. True if it got anywhere.
    pub(super) fn replicate(&mut self, busy: bool, cx: &Context<'_>, node: &Node) -> bool {
        let Some(desks) = node.replicas.get() else { return false };
        let told = (&**desks, node.journal.get());
        let stepped = self.replication.step(self.id, told, busy, cx, &mut self.flows);
        stepped.wake.inspect(|worker| node.wake_if_asleep(*worker));
        stepped.worked
    }

    /// What is due without a received packet: timers, restarts, frames from other workers.
    pub(super) fn housekeeping(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) -> bool {
        let (tables, now) = (cx.tables, cx.now);
        let mut worked = false;
        self.slow.look_at_ports(tables, now, |port, member| node.sender(port, member).is_some());
        if self.slow.next_deadline() <= now || self.slow.is_sweeping() {
            self.slow.timers(cx, &mut self.pool, &node.limits);
            self.slow.answer_unsolicited(&self.flows, cx, &mut self.pool, &node.limits);
            self.send_emitted(cx, node, queues);
            worked = true;
        }
        if self.flows.next_deadline() <= now {
            worked |= self.flows.expire(&tables.policy.timers, now, cx.counters);
            if self.flows.v4.has_said() || self.flows.v6.has_said() {
                self.remind(cx, node, queues);
                worked = true;
            }
            while let Some((held, lost)) = self.flows.fragments.next_settled() {
                self.lose_frame(held.frame, node, lost.unwrap_or(DropReason::FragmentTimeout));
            }
        }
        if node.probes.has_leaving(self.id) {
            self.send_probes(cx, node, queues);
            worked = true;
        }
        if self.id == 0 && !node.spoken.is_empty() {
            self.pass_spoken(cx, node, queues);
            worked = true;
        }
        self.report(node);
        if self.slow.has_parked() {
            let mut parked: ArrayVec<Parked, BURST> = ArrayVec::new();
            self.slow.restarts(&node.neighbours, &mut parked);
            worked |= !parked.is_empty();
            let mut frames = Frames::new();
            for Parked { frame, ingress, .. } in parked {
                frames.push(frame);
                self.burst(&mut frames, ingress, Pass::Again, cx, node, queues);
            }
        }
        if node.directory.is_some() {
            worked |= self.serve_others(cx, node, queues);
        }
        while let Some(batch) = node.hand_over[self.id].pop() {
            worked = true;
            for (frame, port, member) in batch {
                let index = self.routes[usize::from(port) * MAX_MEMBERS + usize::from(member)];
                if index == NO_QUEUE {
                    self.lose_frame(frame, node, DropReason::PortDown);
                } else {
                    self.stage(frame, usize::from(index), node, queues);
                }
            }
        }
        worked
    }

    /// Sends what health checks have to say, a burst at most.
    #[cold]
    fn send_probes(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        for _ in 0..BURST {
            let Engine { slow, pool, .. } = self;
            let sent = node.probes.take_leaving(self.id, |vrf, bytes| match usize::from(vrf) {
                // Newer than the burst's tables: the probe asks again.
                slot if slot >= cx.tables.vrfs.len() => Err(DropReason::NoRoute),
                _ if slow.send_probe(bytes, vrf, cx, pool) => Ok(()),
                _ => Err(DropReason::NoBuffer),
            });
            match sent {
                None => break,
                Some(Ok(())) => {}
                Some(Err(reason)) => add(&cx.counters.drops[reason.index()], 1),
            }
        }
        self.send_emitted(cx, node, queues);
    }

    /// Sends what the HA thread says, and passes on what it has heard, a burst at most.
    #[cold]
    fn pass_spoken(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut frames = Frames::new();
        for spoken in std::iter::from_fn(|| node.spoken.pop()).take(BURST) {
            match spoken {
                Spoken::Tunnels { link, frame } => {
                    self.slow.send_into_tunnels(link, &frame, cx, &mut self.pool);
                    self.send_emitted(cx, node, queues);
                }
                Spoken::Ways { link } => {
                    self.slow.look_for_tunnels(link, cx, &mut self.pool);
                    self.send_emitted(cx, node, queues);
                }
                Spoken::Stations { bridge } => self.slow.announce_stations(bridge, cx.now),
                // Of a port that newer tables have.
                Spoken::Received { port, .. } if usize::from(port) >= cx.tables.ports.len() => {
                    add(&cx.counters.drops[DropReason::UnknownVlan.index()], 1);
                }
                Spoken::Received { port, frame } => match self.pool.take_filled(&frame) {
                    None => add(&cx.counters.drops[DropReason::NoBuffer.index()], 1),
                    Some(frame) => {
                        frames.push(frame);
                        self.received(1, node);
                        self.burst(&mut frames, Ingress::Port(port), Pass::First, cx, node, queues);
                    }
                },
            }
        }
    }

    /// Loses a packet of which the metadata is known: counted per interface too, and recorded.
    fn lose(&mut self, packet: Packet, reason: DropReason, cx: &Context<'_>, node: &Node) {
        let interface = packet.meta.interface;
        if interface != NO_INTERFACE {
            add(&cx.counters.interfaces[usize::from(interface)].drops, 1);
        }
        self.record(&packet.frame, reason, interface, cx, node);
        self.lose_frame(packet.frame, node, reason);
    }

    fn record(&mut self, frame: &Frame, reason: DropReason, interface: u16, cx: &Context<'_>, node: &Node) {
        let bit = 1u128 << reason.index();
        if self.recorded & bit == 0 {
            self.recorded |= bit;
            let bytes = &frame.bytes()[..frame.len().min(crate::telemetry::RECORD_BYTES)];
            node.recorders[self.id].record(
                cx.now,
                reason,
                interface,
                cx.tables.generation,
                frame.total_len(),
                bytes,
            );
        }
    }

    pub(super) fn lose_frame(&mut self, frame: Frame, node: &Node, reason: DropReason) {
        add(&self.counters(node).drops[reason.index()], 1);
        self.pool.put(frame);
    }

    pub(super) fn lose_frames(
        &mut self,
        frames: impl IntoIterator<Item = Frame>,
        node: &Node,
        reason: DropReason,
    ) {
        frames.into_iter().for_each(|frame| self.lose_frame(frame, node, reason));
    }

    pub(super) fn close(&mut self, mut queue: Queue, node: &Node) {
        self.lose_frames(queue.staged.drain(..), node, DropReason::PortDown);
        queue.io.close(&mut self.pool);
    }

    /// Gives every frame back, also those that other workers have given us or wait for them.
    pub(super) fn stop(&mut self, node: &Node) {
        let parked: Vec<Parked> = self.slow.take_parked().collect();
        self.shut_out(parked.into_iter().map(|parked| parked.frame), node);
        let held: Vec<Held> = self.flows.fragments.take_held().collect();
        self.shut_out(held.into_iter().map(|held| held.frame), node);
        for worker in 0..self.outgoing.len() {
            let (finished, packets) =
                (std::mem::take(&mut self.outgoing[worker]), std::mem::take(&mut self.elsewhere[worker]));
            self.shut_out(finished.into_iter().map(|(frame, ..)| frame), node);
            self.shut_out(packets.into_iter().map(|arrival| arrival.frame), node);
        }
        let waiting = std::mem::take(&mut self.waiting).into_iter().flat_map(|waiting| waiting.packets);
        self.shut_out(waiting.map(|(frame, _)| frame), node);
        // What others still give us finds nobody: the last to stop takes it, when none is left to give.
        if node.stopped.fetch_add(1, Ordering::AcqRel) + 1 == node.counters.len() {
            for worker in 0..node.counters.len() {
                while let Some(batch) = node.hand_over[worker].pop() {
                    self.shut_out(batch.into_iter().map(|(frame, ..)| frame), node);
                }
                while let Some(batch) = node.arrivals[worker].pop() {
                    self.shut_out(batch.into_iter().map(|arrival| arrival.frame), node);
                }
            }
        }
        self.pool.exchange();
    }

    fn shut_out(&mut self, frames: impl Iterator<Item = Frame>, node: &Node) {
        self.lose_frames(frames, node, DropReason::Shutdown);
    }
}

const _: () = assert!(DropReason::COUNT <= 128, "the recorder's mask has 128 bits");
