//! What workers give each other: packets of flows that another one has, finished frames for its queues, and NAT
//! mappings.

use std::time::Duration;

use super::Queue;
use super::engine::Engine;
use super::node::{Arrival, ERRANDS, Errand, Node, Outgoing, Waiting};
use crate::flow::steering::Loan;
use crate::mem::{Frame, Frames};
use crate::packet::{DropReason, Pass};
use crate::pipeline::{self, Context};
use crate::telemetry::add;

/// Batches of others' packets that a worker takes in a turn: its own queues come up again soon, however much arrives.
const ARRIVING_BATCHES: usize = 4;

/// How long they wait: an answer that had no room does not come.
const LOAN_PATIENCE: Duration = Duration::from_secs(1);

/// Packets of a worker that wait for another's answer.
const MAX_WAITING: usize = 256;

impl Engine {
    /// Gives a packet to the worker that has its flow.
    pub(super) fn pass_on(&mut self, arrival: Arrival, worker: usize, node: &Node) {
        if self.elsewhere[worker].is_full() {
            self.send_elsewhere(worker, node);
        }
        self.elsewhere[worker].push(arrival);
    }

    pub(super) fn send_elsewhere(&mut self, worker: usize, node: &Node) {
        let batch = std::mem::take(&mut self.elsewhere[worker]);
        let count = batch.len() as u64;
        match node.arrivals[worker].push(batch) {
            Ok(()) => {
                add(&self.counters(node).handed_over, count);
                node.wake_if_asleep(worker);
            }
            Err(batch) => {
                let frames = batch.into_iter().map(|arrival| arrival.frame);
                self.lose_frames(frames, node, DropReason::HandOverFull);
            }
        }
    }

    /// Keeps a packet until another worker has lent the mapping that its session needs: what the burst has asked for
    /// first. Packets of the same flow wait behind it.
    #[cold]
    pub(super) fn borrow(&mut self, frame: Frame, cx: &Context<'_>, node: &Node) {
        let ingress = cx.ingress;
        let request = self.flows.nat.loans.requests.remove(0);
        if self.waiting.iter().map(|waiting| waiting.packets.len()).sum::<usize>() >= MAX_WAITING {
            self.lose_frame(frame, node, DropReason::HandOverFull);
            return;
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.request == request) {
            waiting.packets.push((frame, ingress));
            return;
        }
        let errand = Errand::Borrow { borrower: self.id as u8, request };
        if node.errands[usize::from(request.lender)].push(errand).is_ok() {
            node.wake_if_asleep(request.lender.into());
            self.waiting.push(Waiting { request, since: cx.now, packets: vec![(frame, ingress)] });
        } else {
            self.lose_frame(frame, node, DropReason::HandOverFull);
        }
    }

    /// Packets of our flows that others have received, and what they ask of us.
    pub(super) fn serve_others(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) -> bool {
        let mut worked = false;
        let mut frames = Frames::new();
        for _ in 0..ARRIVING_BATCHES {
            let Some(batch) = node.arrivals[self.id].pop() else { break };
            worked = true;
            let mut last = None;
            for Arrival { frame, ingress, pass } in batch {
                if let Some((ingress, pass)) = last.filter(|last| *last != (ingress, pass)) {
                    self.burst(&mut frames, ingress, pass, cx, node, queues);
                }
                last = Some((ingress, pass));
                frames.push(frame);
            }
            if let Some((ingress, pass)) = last {
                self.burst(&mut frames, ingress, pass, cx, node, queues);
            }
        }
        for _ in 0..ERRANDS {
            let Some(errand) = node.errands[self.id].pop() else { break };
            worked = true;
            self.run_errand(errand, cx, node, queues);
        }
        // In the order in which they began.
        while self.waiting.first().is_some_and(|waiting| waiting.since.plus(LOAN_PATIENCE) < cx.now) {
            let packets = self.waiting.remove(0).packets;
            self.lose_frames(packets.into_iter().map(|(frame, _)| frame), node, DropReason::HandOverFull);
        }
        while let Some(loan) = self.flows.nat.loans.returns.pop() {
            let lender = usize::from(loan.lender);
            if node.errands[lender].push(Errand::Returned(loan)).is_err() {
                // Another time: it owes us as much.
                self.flows.nat.loans.returns.push(loan);
                break;
            }
            node.wake_if_asleep(lender);
        }
        worked
    }

    #[cold]
    fn run_errand(&mut self, errand: Errand, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        match errand {
            Errand::Borrow { borrower, request } => {
                // The pool may have gone: the borrower asked by older tables.
                let pool = cx.tables.policy.pools.iter().find(|pool| pool.id() == request.pool);
                let lent = pool.ok_or(DropReason::PolicyChanged).and_then(|pool| {
                    let refused = |refused| pipeline::note_refused(refused, request.pool, cx.counters);
                    let is_alone = !cx.neighbours.roles.has_peer();
                    self.flows.lend((pool, is_alone), &request, cx.now).map_err(refused)
                });
                if let Err(Errand::Lent { loan: Ok(loan), .. }) =
                    node.errands[usize::from(borrower)].push(Errand::Lent { request, loan: lent })
                {
                    self.flows.take_back(&loan, cx.now);
                }
                node.wake_if_asleep(borrower.into());
            }
            Errand::Lent { request, loan } => {
                let Some(at) = self.waiting.iter().position(|waiting| waiting.request == request) else {
                    // Too late.
                    self.flows.nat.loans.returns.extend(loan.ok());
                    return;
                };
                let waiting = self.waiting.remove(at);
                match loan {
                    Ok(loan) => self.go_on_with(loan, waiting, cx, node, queues),
                    Err(reason) => {
                        let frames = waiting.packets.into_iter().map(|(frame, _)| frame);
                        self.lose_frames(frames, node, reason);
                    }
                }
            }
            Errand::Returned(loan) => self.flows.take_back(&loan, cx.now),
        }
    }

    /// The first packet that waited opens the session, those behind it are part of it.
    fn go_on_with(
        &mut self,
        loan: Loan,
        waiting: Waiting,
        cx: &Context<'_>,
        node: &Node,
        queues: &mut [Queue],
    ) {
        self.flows.nat.loans.given = Some((waiting.request, loan));
        let mut frames = Frames::new();
        for (frame, ingress) in waiting.packets {
            frames.push(frame);
            self.burst(&mut frames, ingress, Pass::Handed, cx, node, queues);
            // Not wanted any more: another decision, or a drop.
            if let Some((_, unused)) = self.flows.nat.loans.given.take() {
                self.flows.nat.loans.returns.push(unused);
            }
        }
    }

    pub(super) fn hand_over(&mut self, outgoing: Outgoing, worker: usize, node: &Node) {
        if self.outgoing[worker].is_full() {
            self.send_over(worker, node);
        }
        self.outgoing[worker].push(outgoing);
    }

    pub(super) fn send_over(&mut self, worker: usize, node: &Node) {
        let batch = std::mem::take(&mut self.outgoing[worker]);
        match node.hand_over[worker].push(batch) {
            Ok(()) => node.wake_if_asleep(worker),
            Err(batch) => {
                let frames = batch.into_iter().map(|(frame, ..)| frame);
                self.lose_frames(frames, node, DropReason::HandOverFull);
            }
        }
    }
}
