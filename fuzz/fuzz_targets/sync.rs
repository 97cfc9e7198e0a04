//! Datagrams of the other node, of any bytes: as they come, and as one that has the key would send them.
//!
//! Input: records of
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bits 0-1: 0 the bytes as they are, 1 and 2 the blocks of a datagram that is sealed, from one of two runs of the other node, 3 a session of ours is told; bit 2: meant for this run; bit 3: there is no room for records; bits 4-7: time that passes before it ([`STEPS_MS`]) |
//! | 1 | length of the bytes that follow (what is there, if the input ends) |
//! | 2.. | the bytes |
//!
//! Whatever comes: nothing is taken for which there is no room, what is told is in this node's slots, and what is sent can
//! be read by who has the key.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use softgate::flow::digest::SLICES;
use softgate::flow::flow_record::Kind;
use softgate::ha::sync::machine::BLOCK_RECORDS;
use softgate::ha::sync::wire::{Block, Header, VERSIONS, blocks, items, sums};
use softgate::ha::sync::{Link, Machine, Names, PairKey, Told};
use softgate::time::Nanos;

/// Times that pass, in milliseconds.
const STEPS_MS: [u64; 16] = [0, 0, 0, 1, 2, 4, 5, 10, 20, 50, 100, 200, 500, 1000, 2500, 10_000];

/// This node's run, and those of the other.
const RUN: u64 = 7;
const OTHERS: [u64; 2] = [11, 13];

const SLOTS: u32 = 3;

#[derive(Default)]
struct Taken {
    room: usize,
    taken: usize,
}

impl Link for Taken {
    fn room(&self) -> usize {
        self.room
    }

    fn take(&mut self, told: Told) {
        self.taken += 1;
        assert!(self.taken <= self.room || self.room > 0, "no room, and taken all the same");
        if let Told::Is { record, .. } = told {
            assert!(u32::from(record.ingress) < SLOTS && u32::from(record.name.tuple.vrf) < SLOTS);
            assert!(record.rule < SLOTS && record.backend.is_none_or(|slot| slot < SLOTS));
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let key = PairKey::new(&[3; 32]).expect("long enough");
    let mut names = Names::default();
    for kind in Kind::ALL {
        names.extend(kind, ["a", "b", "c"].into_iter());
    }
    let mut now = Nanos::from_secs(1);
    let mut machine = Machine::new(key.clone(), RUN, 2, 1_000_000, now);
    machine.set_names(Arc::new(names));
    let (mut rest, mut number) = (input, 0);
    let mut link = Taken::default();
    while let Some((head, behind)) = rest.split_first() {
        let Some((len, behind)) = behind.split_first() else { break };
        let (bytes, behind) = behind.split_at(usize::from(*len).min(behind.len()));
        rest = behind;
        now = now.plus(Duration::from_millis(STEPS_MS[usize::from(head >> 4)]));
        link = Taken { room: if head & 8 == 0 { 4 * BLOCK_RECORDS } else { 0 }, taken: 0 };
        let _ = match head & 3 {
            0 => machine.receive(bytes, now, &mut link),
            run @ (1 | 2) => {
                number += 1;
                let to = if head & 4 == 0 { RUN } else { 0 };
                let header = Header { versions: VERSIONS, from: OTHERS[usize::from(run) - 1], to, number };
                let mut datagram = [&header.emit()[..], bytes].concat();
                key.seal(&mut datagram);
                machine.receive(&datagram, now, &mut link)
            }
            _ => {
                if machine.take_resync()
                    && let Some(resync) = machine.begin_resync()
                {
                    (0..2).for_each(|worker| machine.begin_stream(worker, resync));
                    (0..2).for_each(|worker| machine.end_resync(worker, resync));
                }
                // As whoever reads them does.
                items(bytes).for_each(drop);
                Ok(())
            }
        };
        // What audits want is done: with sums of nothing, and of something in a few slices.
        if let Some(look) = machine.take_look(now) {
            let sum =
                |slice: usize| if head & 1 == 1 && slice.is_multiple_of(9000) { slice as u64 + 1 } else { 0 };
            machine.audited(look, (0..SLICES).map(sum).collect(), now);
        }
        if let Some((repair, slices)) = machine.take_repair(now) {
            assert!(!slices.all().is_empty() && slices.all().is_sorted());
            (0..2).for_each(|worker| machine.begin_stream(worker, repair));
            (0..2).for_each(|worker| machine.end_resync(worker, repair));
        }
        machine.poll(now, &mut link, &mut |datagram| {
            let (header, body) = key.open(datagram).expect("it can be read");
            assert_ne!(header.from, 0);
            for block in blocks(body) {
                if let Block::Sums { slices, sums: bytes, .. } = block.expect("whole") {
                    assert!(slices.0 <= slices.1 && sums(bytes, slices).is_some());
                }
            }
        });
        let status = machine.status(now);
        assert_eq!(status.is_there, machine.is_there());
        assert!(status.drift.repaired + status.drift.left <= status.drift.found);
    }
    let _ = link;
});
