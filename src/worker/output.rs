//! The way of a finished frame to the queue it leaves by.

use super::engine::Engine;
use super::node::Node;
use super::{MAX_MEMBERS, NO_QUEUE, Queue};
use crate::mem::Frame;
use crate::packet::{DropReason, Meta, Packet, hash};
use crate::pipeline::Context;
use crate::tables::{Lag, Tables};
use crate::telemetry::add;

impl Engine {
    /// Sends a finished packet on its way. Returns the queue that takes all frames of its egress.
    #[inline(never)]
    pub(super) fn leave(
        &mut self,
        packet: &mut Packet,
        cx: &Context<'_>,
        node: &Node,
        queues: &mut [Queue],
    ) -> Option<usize> {
        let (mut frame, meta) = (packet.frame.take(), &packet.meta);
        let egress = cx.tables.interface(meta.egress);
        if frame.is_chained() {
            let len = usize::from(egress.header_len) + usize::from(meta.ip_len);
            self.pool.truncate_chain(&mut frame, len);
        }
        let queue = self.only_queue(egress.port, cx.tables);
        match queue {
            Some(index) => self.stage(frame, index, node, queues),
            None => self.transmit(frame, egress.port, Some(meta), cx.tables, node, queues),
        }
        queue
    }

    /// Sends a finished frame by `port`. `meta` picks the member of a static LAG.
    #[inline]
    pub(super) fn transmit(
        &mut self,
        frame: Frame,
        port: u16,
        meta: Option<&Meta>,
        tables: &Tables,
        node: &Node,
        queues: &mut [Queue],
    ) {
        let Some(table) = tables.ports.get(usize::from(port)) else {
            unreachable!("what leaves by an overlay is in a tunnel, and leaves by its egress");
        };
        let member = match table.lag {
            Lag::None => 0,
            Lag::ActiveBackup => (table.members_up.trailing_zeros() % MAX_MEMBERS as u32) as u8,
            Lag::Static => static_member(&frame, meta, table.members_up, tables),
        };
        if table.members_up == 0 {
            self.lose_frame(frame, node, DropReason::PortDown);
            return;
        }
        let index = self.routes[usize::from(port) * MAX_MEMBERS + usize::from(member)];
        if index != NO_QUEUE {
            self.stage(frame, usize::from(index), node, queues);
            return;
        }
        match node.sender(port, member) {
            Some(worker) => self.hand_over((frame, port, member), worker, node),
            None => self.lose_frame(frame, node, DropReason::PortDown),
        }
    }

    /// The worker's own queue on a port of one device that is up.
    fn only_queue(&self, port: u16, tables: &Tables) -> Option<usize> {
        let table = &tables.ports[usize::from(port)];
        let index = self.routes[usize::from(port) * MAX_MEMBERS];
        (table.lag == Lag::None && table.members_up != 0 && index != NO_QUEUE).then_some(usize::from(index))
    }

    #[inline(always)]
    pub(super) fn stage(&mut self, frame: Frame, index: usize, node: &Node, queues: &mut [Queue]) {
        let queue = &mut queues[index];
        if let Err(full) = queue.staged.try_push(frame) {
            self.send(queue, node);
            queue.staged.push(full.element());
        }
    }

    /// Gives the staged frames to the device; what it does not take even after a flush is lost.
    fn send(&mut self, queue: &mut Queue, node: &Node) {
        let mut sent = queue.io.send(&mut self.pool, &mut queue.staged);
        if !queue.staged.is_empty() {
            queue.io.flush(&mut self.pool);
            sent += queue.io.send(&mut self.pool, &mut queue.staged);
        }
        queue.tx_frames += sent as u64;
        queue.tx_ring_full += queue.staged.len() as u64;
        add(&self.counters(node).sent, sent as u64);
        self.lose_frames(queue.staged.drain(..), node, DropReason::TxRingFull);
    }

    pub(super) fn flush(&mut self, node: &Node, queues: &mut [Queue]) {
        for queue in queues.iter_mut() {
            if !queue.staged.is_empty() {
                self.send(queue, node);
            }
            queue.io.flush(&mut self.pool);
        }
        for worker in 0..self.outgoing.len() {
            if !self.outgoing[worker].is_empty() {
                self.send_over(worker, node);
            }
            if !self.elsewhere[worker].is_empty() {
                self.send_elsewhere(worker, node);
            }
        }
    }
}

/// The member of a static LAG that carries a flow: the n-th that is up.
fn static_member(frame: &Frame, meta: Option<&Meta>, members_up: u8, tables: &Tables) -> u8 {
    let flow = meta.map_or(0, |meta| {
        let l3 = usize::from(tables.interface(meta.egress).header_len);
        let ports = (meta.src_port, meta.dst_port);
        hash::of_packet(tables.settings.key, meta.family, &frame.bytes()[l3..], meta.protocol, ports)
    });
    let up = members_up.count_ones().max(1);
    let wanted = ((flow >> 32) % u64::from(up)) as u32;
    (0..8).filter(|member| members_up & 1 << member != 0).nth(wanted as usize).unwrap_or(0)
}
