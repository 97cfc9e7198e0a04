//! A node's side of the pair.
//!
//! A peer is *there* once it has said something that is meant for this run of ours: so it has heard us, lately. Then all
//! streams begin anew, names are told, and the caller is asked for a resync ([`Machine::take_resync`]). Whoever is silent
//! for [`SILENCE`] is gone, until it speaks again.

use std::sync::Arc;
use std::time::Duration;

use super::audit::{Audit, Drift};
use super::letters::{Inbox, Outbox};
use super::names::Names;
use super::seal::{BadDatagram, PairKey, Past, Window};
use super::stream::{Incoming, Outgoing};
use super::wire::{
    self, BRIDGES, Block, CONFIGS, DATA_BYTES, DATAGRAM_BYTES, HEADER_BYTES, Header, Item, LETTERS,
    TAG_BYTES, VERSIONS, blocks, emit_section, items, sums,
};
use crate::flow::changes::Gone;
use crate::flow::digest::Slices;
use crate::flow::flow_record::{FlowRecord, Kind, Name, translate_vrf};
use crate::packet::hash::Key;
use crate::tables::policy::SELF;
use crate::time::Nanos;

/// Something is said so often at least.
pub const HEARTBEAT: Duration = Duration::from_millis(200);
/// Who says nothing for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(2);
/// The end of a session of IPv4: kind and length, table and protocol, ports and VRF, addresses, idle time.
const SHORTEST_RECORD: usize = 2 + 2 + 6 + 9 + 4;
/// Most records of a block, and as many as whoever takes them has to have room for.
pub const BLOCK_RECORDS: usize = DATA_BYTES / SHORTEST_RECORD;
/// Most streams: as many as workers can be, and the names.
const STREAMS: u16 = 257;
/// Most names of a kind: as many as there are slots for rules.
const NAMES: usize = 1 << 20;
/// Names.
const OF_NAMES: u16 = 0;
/// Bytes that may be sent at once: less than a socket holds whose reader is a moment late (the kernel's default is 208 KiB,
/// and a datagram counts for more than its bytes).
const BURST_BYTES: u64 = 96 * 1024;
/// Pieces of letters sent at a time.
const LETTER_PIECES: usize = 64;
/// Blocks of sums sent at a time.
const SUM_BLOCKS: usize = 8;
/// Who lags by more than this says nothing about drift.
const QUIET: Duration = Duration::from_secs(1);

/// What the peer has told, in this node's slots.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// A session is there, or stands elsewhere.
    Is {
        /// What is told of it.
        record: FlowRecord,
        /// It was told after its stream had begun the resync under way: else it may have ended before that.
        counts: bool,
    },
    /// A session has ended.
    Gone(Gone),
    /// From here on it tells of everything.
    Begin,
    /// It has told of everything: what it has not told of is to end.
    End,
    /// It has told of everything, and began with nothing: what an earlier life of its has told of and this one has not, this
    /// node alone has now.
    EndOfFirst,
    /// From here on it tells of everything in some slices.
    BeginPart,
    /// It has: what is in these slices and was not told of is to end.
    EndPart(Slices),
}

/// What the thread can do with what is told.
pub trait Link {
    /// Records that can be taken now.
    fn room(&self) -> usize;
    /// Takes one. There was room.
    fn take(&mut self, told: Told);
}

/// Counters and what is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The peer is there.
    pub is_there: bool,
    /// Time since something was heard of it.
    pub silent: Option<Duration>,
    /// How long the oldest record has waited for an acknowledgment.
    pub lag: Duration,
    /// Records that were told and not acknowledged.
    pub pending: u64,
    /// Everything has been told, and acknowledged, since the peer is there.
    pub is_synced: bool,
    /// Everything that the peer has was told here since it is there.
    pub has_all: bool,
    /// Resyncs begun, here and there.
    pub resyncs: [u64; 2],
    /// Datagrams and their bytes, sent and received.
    pub datagrams: [u64; 2],
    /// Bytes of them.
    pub bytes: [u64; 2],
    /// Records told and heard.
    pub records: [u64; 2],
    /// What the audits have found.
    pub drift: Drift,
    /// Sections in which the configs of both nodes differ; absent: not known.
    pub differs: Option<Arc<[String]>>,
    /// Blocks that had to be sent again.
    pub resent: u64,
    /// Records of which a name is not known here.
    pub unknown_names: u64,
    /// Records that make no sense.
    pub senseless: u64,
    /// Datagrams that say nothing, by position in [`BadDatagram::ALL`].
    pub refused: [u64; BadDatagram::ALL.len()],
}

#[derive(Debug)]
struct Peer {
    /// Which run of it.
    run: u64,
    /// The version that it speaks.
    version: u8,
    /// Which life of it; 0: it does not say.
    life: u64,
    /// It has come back with nothing since this node has last heard all of it.
    is_reborn: bool,
    heard: Nanos,
    window: Window,
    outgoing: Vec<Outgoing>,
    incoming: Vec<Incoming>,
    names: Names,
    /// Names told, by kind.
    told: [usize; Kind::ALL.len()],
    /// The resync of ours, and which streams have ended it.
    resync: u32,
    ended: Vec<bool>,
    /// Since when nothing is told again.
    whole_since: Option<Nanos>,
    /// The last repair of ours, of which slices, and which streams have ended it.
    repair: Option<Repair>,
    /// The peer's, and which of its streams have ended it.
    theirs: u32,
    /// Which of its streams have begun it: one may be behind another.
    theirs_begun: Vec<bool>,
    theirs_ended: Vec<bool>,
    /// If it is a repair: of these slices.
    theirs_part: Option<Slices>,
    has_all: bool,
    /// The sections of its config, once it has said.
    config: Option<Vec<(String, u64)>>,
    differs: Option<Arc<[String]>>,
    /// Names were missing: when they are there, everything has to be told again.
    lacks_names: bool,
    asks_again: bool,
    outbox: Outbox,
    inbox: Inbox,
}

/// Slices that are told again.
#[derive(Debug)]
struct Repair {
    number: u32,
    slices: Slices,
    ended: Vec<bool>,
}

/// A node's side of the pair.
#[derive(Debug)]
pub struct Machine {
    key: PairKey,
    run: u64,
    /// Of this process.
    life: u64,
    workers: u16,
    names: Arc<Names>,
    number: u64,
    /// A run that was heard and has not heard us yet.
    stranger: u64,
    past: Past,
    /// The peer's life that has told everything last; 0: none has said.
    their_life: u64,
    audit: Audit,
    /// The sections of this node's config, as far as it is known.
    config: Vec<(String, u64)>,
    peer: Option<Peer>,
    next_heartbeat: Nanos,
    wants_resync: bool,
    /// The last resync.
    resync: u32,
    /// Bytes a second.
    rate: u64,
    credit: u64,
    credited: Nanos,
    /// Which stream is the first to send, and to be taken from.
    turn: usize,
    status: Status,
}

impl Machine {
    /// `run`: a random number that no other run has had. `workers`: how many streams. `rate`: bytes a second.
    pub fn new(key: PairKey, run: u64, workers: u16, rate: u64, now: Nanos) -> Machine {
        Machine {
            key,
            run,
            life: run,
            workers: workers.min(STREAMS - 1),
            names: Arc::default(),
            number: 0,
            stranger: 0,
            past: Past::default(),
            their_life: 0,
            audit: Audit::default(),
            config: Vec::new(),
            peer: None,
            next_heartbeat: now,
            wants_resync: false,
            resync: 0,
            rate: rate.max(1),
            credit: BURST_BYTES,
            credited: now,
            turn: 0,
            status: Status::default(),
        }
    }

    /// In this life of the process: with a new one its sessions began with nothing. Without, the run is one.
    pub fn in_life(self, life: u64) -> Machine {
        Machine { life, ..self }
    }

    /// What the sums of audits are keyed with.
    pub fn audit_key(&self) -> Key {
        self.key.audit_key()
    }

    /// What this node's slots are called now: those that there were, and more.
    pub fn set_names(&mut self, names: Arc<Names>) {
        let has_more = names.len() > self.names.len();
        self.names = names;
        if let Some(peer) = &mut self.peer
            && has_more
            && std::mem::take(&mut peer.lacks_names)
        {
            peer.asks_again = true;
        }
    }

    /// The sections of this node's config ([`crate::config::Config::sections`]), with [`Machine::audit_key`].
    pub fn set_config(&mut self, sections: Vec<(String, u64)>) {
        self.config = sections;
        if let Some(peer) = &mut self.peer {
            peer.compare_configs(&self.config);
        }
        // The peer learns it now rather than with the next.
        self.next_heartbeat = Nanos(0);
    }

    /// True if everything has to be told, since this was asked last: then [`Machine::begin_resync`].
    pub fn take_resync(&mut self) -> bool {
        std::mem::take(&mut self.wants_resync)
    }

    /// The peer is there.
    pub fn is_there(&self) -> bool {
        self.peer.is_some()
    }

    /// Everything is to be told: the number of the resync, to be given back for each worker by [`Machine::begin_stream`] in
    /// front of what is told from then on, and by [`Machine::end_resync`] behind it. `None`: nobody is there.
    pub fn begin_resync(&mut self) -> Option<u32> {
        let workers = usize::from(self.workers);
        let peer = self.peer.as_mut()?;
        // Of all peers another: a worker may still be at that of the one before.
        self.resync = self.resync.wrapping_add(1).max(1);
        peer.resync = self.resync;
        peer.ended = vec![false; workers];
        peer.repair = None;
        self.audit.begin_anew();
        self.status.resyncs[0] += 1;
        Some(peer.resync)
    }

    /// True if a resync has begun, or slices are told again, and not every worker has told everything.
    pub fn is_resyncing(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| {
            let is_repairing =
                peer.repair.as_ref().is_some_and(|repair| repair.ended.iter().any(|ended| !ended));
            is_repairing || peer.resync != 0 && peer.ended.iter().any(|ended| !ended)
        })
    }

    /// A worker tells everything from now on. The caller has asked [`Machine::has_room`].
    pub fn begin_stream(&mut self, worker: u16, number: u32) {
        let Some(peer) = &self.peer else { return };
        let repair = peer.repair.as_ref().filter(|repair| repair.number == number);
        if let Some(Repair { slices, .. }) = repair {
            let slices = *slices;
            self.offer_marker(worker, &Item::Part { number, slices });
        } else if peer.resync == number {
            self.offer_marker(worker, &Item::Begin(number));
        }
    }

    fn offer_marker(&mut self, worker: u16, item: &Item<'_>) {
        let names = self.names_told() as u32;
        let outgoing = self.peer.as_mut().and_then(|peer| peer.outgoing.get_mut(usize::from(worker) + 1));
        if let Some(outgoing) = outgoing {
            outgoing.offer(item, names);
        }
    }

    /// A worker has told everything.
    pub fn end_resync(&mut self, worker: u16, number: u32) {
        let Some(peer) = &mut self.peer else { return };
        let ended = match &mut peer.repair {
            Some(repair) if repair.number == number => &mut repair.ended,
            _ if peer.resync == number => &mut peer.ended,
            _ => return,
        };
        if let Some(ended) = ended.get_mut(usize::from(worker)) {
            *ended = true;
            self.offer_marker(worker, &Item::End(number));
        }
    }

    /// True if a worker's record could be sent soon.
    pub fn has_room(&self, worker: u16) -> bool {
        self.peer.as_ref().is_some_and(|peer| {
            let has_told = peer.told.iter().sum::<usize>() == self.names_told();
            has_told && peer.outgoing.get(usize::from(worker) + 1).is_some_and(Outgoing::has_room)
        })
    }

    /// A session of a worker is there, or stands elsewhere. The caller has asked [`Machine::has_room`].
    pub fn tell(&mut self, worker: u16, record: &FlowRecord) {
        if self.knows_of(&record.name) {
            self.offer(worker, &Item::Is(*record));
        }
    }

    /// One has ended.
    pub fn tell_gone(&mut self, worker: u16, gone: &Gone) {
        if self.knows_of(&gone.name) {
            self.offer(worker, &Item::Gone(*gone));
        }
    }

    /// True if the peer's version knows of such sessions.
    fn knows_of(&self, name: &Name) -> bool {
        !name.is_bridged() || self.peer.as_ref().is_some_and(|peer| peer.version >= BRIDGES)
    }

    /// Names that the peer is to know.
    fn names_told(&self) -> usize {
        let version = self.peer.as_ref().map_or(0, |peer| peer.version);
        kinds_of(version).map(|kind| self.names.count(kind)).sum()
    }

    fn offer(&mut self, worker: u16, item: &Item<'_>) {
        let names = self.names_told() as u32;
        if let Some(peer) = &mut self.peer
            && let Some(outgoing) = peer.outgoing.get_mut(usize::from(worker) + 1)
        {
            outgoing.offer(item, names);
            self.status.records[0] += 1;
        }
    }

    /// Something that was told found no room: the peer is asked to tell everything again.
    pub fn ask_again(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.asks_again = true;
        }
    }

    // ---- letters

    /// The peer's run, if it reads letters: those to one do not come to another.
    pub fn correspondent(&self) -> Option<u64> {
        self.peer.as_ref().filter(|peer| peer.version >= LETTERS).map(|peer| peer.run)
    }

    /// Writes the peer a letter. False: nobody is there who reads it, or it is too long, or too many wait.
    pub fn post(&mut self, letter: Vec<u8>) -> bool {
        self.peer.as_mut().filter(|peer| peer.version >= LETTERS).is_some_and(|peer| peer.outbox.post(letter))
    }

    /// The peer's next letter. Until it is taken none that follows is received.
    pub fn take_letter(&mut self) -> Option<Vec<u8>> {
        self.peer.as_mut()?.inbox.take()
    }

    // ---- audits

    /// True if nothing is under way for long: sums can be compared. What was told more than [`QUIET`] ago has arrived, and so
    /// have the markers of the last resync.
    fn is_quiet(&self, now: Nanos) -> bool {
        let is_old = |peer: &Peer| {
            let lag = peer.outgoing.iter().map(|outgoing| outgoing.age(now)).max().unwrap_or_default();
            lag < QUIET && peer.whole_since.is_some_and(|since| now.since(since) > 2 * QUIET)
        };
        self.peer.as_ref().is_some_and(|peer| peer.version >= BRIDGES && peer.has_all && is_old(peer))
            && !self.is_resyncing()
    }

    /// The number of a look at all sessions that is due: the caller has the workers take it, and gives the sums of all of
    /// them together to [`Machine::audited`].
    pub fn take_look(&mut self, now: Nanos) -> Option<u32> {
        if self.is_quiet(now) { self.audit.take_look(now) } else { None }
    }

    /// A look is done: sums by slice.
    pub fn audited(&mut self, number: u32, sums: Vec<u64>, now: Nanos) {
        self.audit.looked(number, sums, now);
    }

    /// Slices are to be told again: which, and the number, to be given back as that of a resync.
    pub fn take_repair(&mut self, now: Nanos) -> Option<(u32, Slices)> {
        if !self.is_quiet(now) {
            return None;
        }
        if self.audit.take_wants_all() {
            self.wants_resync = true;
            return None;
        }
        let slices = self.audit.take_repair()?;
        let peer = self.peer.as_mut()?;
        self.resync = self.resync.wrapping_add(1).max(1);
        let ended = vec![false; usize::from(self.workers)];
        peer.repair = Some(Repair { number: self.resync, slices, ended });
        Some((self.resync, slices))
    }

    // ---- in

    /// A datagram has come. What it tells is taken by `link`, as far as that has room.
    pub fn receive(&mut self, datagram: &[u8], now: Nanos, link: &mut impl Link) -> Result<(), BadDatagram> {
        let result = self.received(datagram, now, link);
        if let Err(bad) = result {
            self.status.refused[bad as usize] += 1;
        }
        result
    }

    fn received(&mut self, datagram: &[u8], now: Nanos, link: &mut impl Link) -> Result<(), BadDatagram> {
        let (header, body) = self.key.open(datagram)?;
        if header.from == self.run || header.from == 0 {
            return Err(BadDatagram::Own);
        }
        if self.past.has(header.from) {
            return Err(BadDatagram::Replayed);
        }
        if header.to != self.run {
            // It does not know us yet, or is a recording: answered, and not believed. Nobody takes the place of a peer
            // that speaks.
            if self.peer.as_ref().is_none_or(|peer| peer.run == header.from || is_silent(peer, now)) {
                self.stranger = header.from;
            }
            return if header.to == 0 { Ok(()) } else { Err(BadDatagram::NotForUs) };
        }
        if self.peer.as_ref().is_none_or(|peer| peer.run != header.from) {
            self.meet(header.from, now);
        }
        let Some(peer) = &mut self.peer else { return Ok(()) };
        if !peer.window.take(header.number) {
            return Err(BadDatagram::Replayed);
        }
        peer.heard = now;
        peer.version = header.versions.0;
        self.status.datagrams[1] += 1;
        self.status.bytes[1] += datagram.len() as u64;
        for block in blocks(body) {
            let block = block.map_err(|_| BadDatagram::Content)?;
            self.block(&block, now).ok_or(BadDatagram::Content)?;
        }
        self.deliver(link);
        Ok(())
    }

    /// A run of the peer that has heard us.
    fn meet(&mut self, run: u64, now: Nanos) {
        if let Some(old) = self.peer.take() {
            self.past.note(old.run);
        }
        let streams = usize::from(self.workers) + 1;
        self.audit.meet();
        self.peer = Some(Peer {
            run,
            version: 0,
            life: 0,
            is_reborn: false,
            heard: now,
            window: Window::default(),
            outgoing: (0..streams).map(|_| Outgoing::default()).collect(),
            incoming: Vec::new(),
            names: Names::default(),
            told: [0; Kind::ALL.len()],
            resync: 0,
            ended: Vec::new(),
            whole_since: None,
            repair: None,
            theirs: 0,
            theirs_begun: Vec::new(),
            theirs_ended: Vec::new(),
            theirs_part: None,
            has_all: false,
            config: None,
            differs: None,
            lacks_names: false,
            asks_again: false,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
        });
        self.wants_resync = true;
        self.next_heartbeat = now;
    }

    /// `None`: it is of no stream.
    fn block(&mut self, block: &Block<'_>, now: Nanos) -> Option<()> {
        let peer = self.peer.as_mut()?;
        match *block {
            Block::Hello { streams, life } => {
                let streams = usize::from(streams);
                if !(2..=usize::from(STREAMS)).contains(&streams)
                    || !peer.incoming.is_empty() && peer.incoming.len() != streams
                {
                    return None;
                }
                peer.incoming.resize_with(streams, Incoming::default);
                peer.is_reborn = life != 0 && self.their_life != 0 && life != self.their_life;
                peer.life = life;
            }
            Block::Data { stream, seq, names, records } => {
                // Without a greeting before it: it will be sent again.
                if !peer.incoming.is_empty() {
                    peer.incoming.get_mut(usize::from(stream))?.receive(seq, names, records);
                }
            }
            Block::Ack { stream, next, until } => {
                peer.outgoing.get_mut(usize::from(stream))?.acked(next, until, now);
            }
            Block::State { stream, next } => {
                if !peer.incoming.is_empty() {
                    peer.incoming.get_mut(usize::from(stream))?.note_state(next);
                }
            }
            Block::Again => self.wants_resync = true,
            Block::Config { sections: bytes } => {
                let sections = wire::sections(bytes)?;
                if peer.config.as_ref() != Some(&sections) {
                    peer.config = Some(sections);
                    peer.compare_configs(&self.config);
                }
            }
            Block::Letter { number, len, at, piece } => peer.inbox.receive(number, len, at, piece)?,
            Block::LetterAck { number, bytes } => peer.outbox.acked(number, bytes, now),
            Block::Sums { round, slices, sums: bytes } => {
                let sums = sums(bytes, slices).filter(|_| slices.0 <= slices.1)?;
                let is_quiet = self.is_quiet(now);
                self.audit.hear(round, slices, &sums, now, is_quiet);
            }
        }
        Some(())
    }

    /// Gives on what has come in order: names first.
    fn deliver(&mut self, link: &mut impl Link) {
        let Some(peer) = &mut self.peer else { return };
        let streams = peer.incoming.len();
        for step in 0..streams {
            // Where there is little room, each is the first in turn.
            let stream = if step == 0 { 0 } else { 1 + step.wrapping_add(self.turn) % (streams - 1) };
            loop {
                if stream != usize::from(OF_NAMES) && link.room() < BLOCK_RECORDS {
                    return;
                }
                let known = peer.names.len() as u32;
                let Some(records) = peer.incoming[stream].take(known) else { break };
                let before = peer.names.len();
                for item in items(&records) {
                    let told = match item {
                        None => {
                            self.status.senseless += 1;
                            continue;
                        }
                        Some(Item::Name { kind, slot, name }) => {
                            let is_next = peer.names.learn(kind, slot, name, NAMES);
                            self.status.senseless += u64::from(!is_next);
                            continue;
                        }
                        Some(Item::Is(mut record)) => {
                            self.status.records[1] += 1;
                            let (theirs, own) = (&peer.names, &self.names);
                            if !record.translate(|kind, slot| own_slot(kind, slot, theirs, own)) {
                                self.status.unknown_names += 1;
                                peer.lacks_names = true;
                                continue;
                            }
                            let counts = peer.theirs_begun.get(stream).is_none_or(|begun| *begun);
                            Told::Is { record, counts }
                        }
                        Some(Item::Gone(Gone { mut name, idle })) => {
                            self.status.records[1] += 1;
                            let (theirs, own) = (&peer.names, &self.names);
                            let found =
                                translate_vrf(name.tuple.vrf, |kind, slot| own_slot(kind, slot, theirs, own));
                            let Some(vrf) = found else { continue };
                            name.tuple.vrf = vrf;
                            Told::Gone(Gone { name, idle })
                        }
                        Some(Item::Begin(number)) => {
                            let is_first = peer.theirs == 0 || number.wrapping_sub(peer.theirs) as i32 > 0;
                            if is_first {
                                peer.theirs = number;
                                peer.theirs_part = None;
                                peer.theirs_begun = vec![false; peer.incoming.len()];
                                peer.theirs_ended = vec![false; peer.incoming.len()];
                            }
                            if number == peer.theirs {
                                peer.theirs_begun[stream] = true;
                            }
                            if !is_first {
                                continue;
                            }
                            self.status.resyncs[1] += 1;
                            self.audit.begin_anew();
                            Told::Begin
                        }
                        Some(Item::End(number)) => {
                            if number != peer.theirs || peer.theirs_ended.get(stream) != Some(&false) {
                                continue;
                            }
                            peer.theirs_ended[stream] = true;
                            if peer.theirs_ended[1..].iter().any(|ended| !ended) {
                                continue;
                            }
                            peer.end_theirs(&mut self.their_life)
                        }
                        Some(Item::Part { number, slices }) => {
                            match peer.begin_part(stream, number, slices) {
                                true => Told::BeginPart,
                                false => continue,
                            }
                        }
                    };
                    link.take(told);
                }
                if peer.names.len() > before && std::mem::take(&mut peer.lacks_names) {
                    peer.asks_again = true;
                }
            }
        }
    }

    // ---- out

    /// What is due: datagrams for `send`. To be called every few milliseconds, and gives on what had no room before.
    pub fn poll(&mut self, now: Nanos, link: &mut impl Link, send: &mut impl FnMut(&[u8])) {
        if self.peer.as_ref().is_some_and(|peer| is_silent(peer, now))
            && let Some(peer) = self.peer.take()
        {
            // It may still have our streams as they were. With another run of ours both begin anew.
            self.stranger = peer.run;
            self.run = self.key.next_run(self.run);
        }
        self.deliver(link);
        self.tell_names();
        let passed = now.since(self.credited).as_nanos().min(1_000_000_000) as u64;
        let earned = u128::from(passed) * u128::from(self.rate) / 1_000_000_000;
        if earned > 0 {
            (self.credit, self.credited) = ((self.credit + earned as u64).min(BURST_BYTES), now);
        }
        let mut out = Out::default();
        if self.next_heartbeat <= now {
            self.next_heartbeat = now.plus(HEARTBEAT);
            self.greet(&mut out, send);
        }
        self.acknowledge(&mut out, send);
        self.send_blocks(now, &mut out, send);
        self.send_letters(now, &mut out, send);
        self.send_sums(now, &mut out, send);
        self.flush(&mut out, send);
    }

    /// Names that the peer does not have yet.
    fn tell_names(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        for kind in kinds_of(peer.version) {
            while peer.outgoing[0].has_room()
                && let Some(name) = self.names.name(kind, peer.told[kind as usize] as u32)
            {
                let slot = peer.told[kind as usize] as u32;
                peer.outgoing[0].offer(&Item::Name { kind, slot, name }, 0);
                peer.told[kind as usize] += 1;
            }
        }
    }

    fn greet(&mut self, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        self.put(&Block::Hello { streams: self.workers + 1, life: self.life }, out, send);
        let Some(peer) = &mut self.peer else { return };
        peer.incoming.iter_mut().for_each(|incoming| incoming.owes = true);
        let asks_again = std::mem::take(&mut peer.asks_again);
        let peer_version = peer.version;
        let states: Vec<Block<'static>> = (0..)
            .zip(&peer.outgoing)
            .map(|(stream, outgoing)| Block::State { stream, next: outgoing.next() })
            .collect();
        states.iter().for_each(|state| self.put(state, out, send));
        let speaks = peer_version >= CONFIGS && !self.config.is_empty();
        if asks_again {
            self.put(&Block::Again, out, send);
        }
        if speaks {
            let mut sections = Vec::new();
            self.config.iter().for_each(|(name, hash)| emit_section(name, *hash, &mut sections));
            self.put(&Block::Config { sections: &sections }, out, send);
        }
    }

    fn acknowledge(&mut self, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        let Some(peer) = &mut self.peer else { return };
        let owed = (0..).zip(&mut peer.incoming).filter(|(_, incoming)| incoming.owes);
        let acks: Vec<Block<'static>> = owed.map(|(stream, incoming)| incoming.ack(stream)).collect();
        acks.iter().for_each(|ack| self.put(ack, out, send));
    }

    /// First what was asked for and what is overdue, then what is new, as far as the rate allows.
    fn send_blocks(&mut self, now: Nanos, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        let names = self.names_told() as u32;
        let streams = self.peer.as_ref().map_or(0, |peer| peer.outgoing.len());
        for stream in 0..streams {
            let Some(peer) = &mut self.peer else { return };
            let outgoing = &mut peer.outgoing[stream];
            outgoing.close(if stream == 0 { 0 } else { names });
            let asked = std::mem::take(&mut outgoing.wanted);
            let overdue = outgoing.overdue(now);
            let mut block = Vec::new();
            let mut ready = Vec::new();
            for at in 0..asked.max(overdue) {
                if self.credit < outgoing.len_of(at) as u64 {
                    break;
                }
                self.credit -= outgoing.len_of(at) as u64;
                outgoing.send(at, stream as u16, now).emit(&mut block);
                ready.push(std::mem::take(&mut block));
            }
            ready.iter().for_each(|block| self.put_bytes(block, out, send));
        }
        // One block of each stream in turn: none waits for another that has everything to tell. Names come first.
        self.turn = self.turn.wrapping_add(1);
        let mut goes_on = streams > 0;
        while goes_on {
            goes_on = false;
            for step in 0..streams {
                let stream = if step == 0 { 0 } else { 1 + step.wrapping_add(self.turn) % (streams - 1) };
                let Some(peer) = &mut self.peer else { return };
                let outgoing = &mut peer.outgoing[stream];
                let Some(at) = outgoing.fresh().filter(|at| outgoing.len_of(*at) as u64 <= self.credit)
                else {
                    continue;
                };
                self.credit -= outgoing.len_of(at) as u64;
                let mut block = Vec::new();
                outgoing.send(at, stream as u16, now).emit(&mut block);
                self.put_bytes(&block, out, send);
                goes_on = true;
            }
        }
    }

    /// Behind the sessions: nobody's connection waits for them.
    fn send_letters(&mut self, now: Nanos, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        if let Some(ack) = self.peer.as_mut().and_then(|peer| peer.inbox.ack()) {
            self.put(&ack, out, send);
        }
        for _ in 0..LETTER_PIECES {
            if self.credit < DATAGRAM_BYTES as u64 {
                return;
            }
            let Some(piece) = self.peer.as_mut().and_then(|peer| peer.outbox.next(now)) else { return };
            let mut block = Vec::with_capacity(piece.bytes());
            piece.emit(&mut block);
            self.credit -= block.len() as u64;
            self.put_bytes(&block, out, send);
        }
    }

    /// Sums last: they are told again anyway.
    fn send_sums(&mut self, now: Nanos, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        let is_whole = !self.is_resyncing();
        if let Some(peer) = &mut self.peer {
            let since = peer.whole_since.unwrap_or(now);
            peer.whole_since = (is_whole && peer.has_told_all()).then_some(since);
        }
        if !self.is_quiet(now) {
            return;
        }
        for _ in 0..SUM_BLOCKS {
            if self.credit < DATAGRAM_BYTES as u64 {
                return;
            }
            let Some(block) = self.audit.next_block() else { return };
            self.credit -= block.len() as u64;
            self.put_bytes(&block, out, send);
        }
    }

    fn put(&mut self, block: &Block<'_>, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        let mut bytes = Vec::with_capacity(block.bytes());
        block.emit(&mut bytes);
        self.put_bytes(&bytes, out, send);
    }

    fn put_bytes(&mut self, block: &[u8], out: &mut Out, send: &mut impl FnMut(&[u8])) {
        if HEADER_BYTES + out.body.len() + block.len() + TAG_BYTES > DATAGRAM_BYTES {
            self.flush(out, send);
        }
        out.body.extend(block);
    }

    fn flush(&mut self, out: &mut Out, send: &mut impl FnMut(&[u8])) {
        if out.body.is_empty() {
            return;
        }
        self.number += 1;
        let to = self.peer.as_ref().map_or(self.stranger, |peer| peer.run);
        let header = Header { versions: VERSIONS, from: self.run, to, number: self.number };
        let mut datagram = [&header.emit()[..], &out.body].concat();
        out.body.clear();
        self.key.seal(&mut datagram);
        self.status.datagrams[0] += 1;
        self.status.bytes[0] += datagram.len() as u64;
        send(&datagram);
    }

    /// Counters and what is under way.
    pub fn status(&self, now: Nanos) -> Status {
        let Some(peer) = &self.peer else { return self.status.clone() };
        let streams = peer.outgoing.iter();
        let pending = streams.clone().map(Outgoing::pending).sum();
        let has_ended = peer.has_told_all();
        Status {
            is_there: true,
            silent: Some(now.since(peer.heard)),
            lag: streams.clone().map(|outgoing| outgoing.age(now)).max().unwrap_or_default(),
            pending,
            is_synced: has_ended && pending == 0,
            has_all: peer.has_all,
            resent: streams.map(|outgoing| outgoing.resent).sum(),
            drift: self.audit.drift(),
            differs: peer.differs.clone(),
            ..self.status.clone()
        }
    }

    /// True if a worker has told everything since the peer is there.
    pub fn has_told_all(&self, worker: u16) -> bool {
        let peer = self.peer.as_ref().filter(|peer| peer.resync != 0);
        peer.and_then(|peer| peer.ended.get(usize::from(worker)).copied()).unwrap_or(false)
    }
}

impl Peer {
    fn compare_configs(&mut self, own: &[(String, u64)]) {
        let Some(theirs) = self.config.as_ref().filter(|_| !own.is_empty()) else { return };
        let of =
            |all: &[(String, u64)], name: &str| all.iter().find(|(of, _)| of == name).map(|(_, hash)| *hash);
        let mut names: Vec<&String> = own.iter().chain(theirs).map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        let differs = names.into_iter().filter(|name| of(own, name) != of(theirs, name));
        self.differs = Some(differs.cloned().collect());
    }

    /// All of our streams have ended the resync.
    fn has_told_all(&self) -> bool {
        self.resync != 0 && self.ended.iter().all(|ended| *ended)
    }

    /// A stream of the peer's begins to tell of slices: true if it is the first. One that comes while not everything has been
    /// told yet is none: all of it is under way.
    fn begin_part(&mut self, stream: usize, number: u32, slices: Slices) -> bool {
        let is_first = self.has_all && number.wrapping_sub(self.theirs) as i32 > 0;
        if is_first {
            self.theirs = number;
            self.theirs_part = Some(slices);
            self.theirs_begun = vec![false; self.incoming.len()];
            self.theirs_ended = vec![false; self.incoming.len()];
        }
        if number == self.theirs {
            self.theirs_begun[stream] = true;
        }
        is_first
    }

    /// All streams of the peer's have told what they were to.
    fn end_theirs(&mut self, their_life: &mut u64) -> Told {
        if let Some(slices) = self.theirs_part {
            return Told::EndPart(slices);
        }
        self.has_all = true;
        *their_life = self.life;
        if std::mem::take(&mut self.is_reborn) { Told::EndOfFirst } else { Told::End }
    }
}

/// A datagram in the making.
#[derive(Default)]
struct Out {
    body: Vec<u8>,
}

/// Kinds of names that a peer of this version knows.
fn kinds_of(version: u8) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(move |kind| *kind != Kind::Bridge || version >= BRIDGES)
}

fn is_silent(peer: &Peer, now: Nanos) -> bool {
    now.since(peer.heard) > SILENCE
}

/// The slot that has the name here which a slot of the peer's has there.
pub fn own_slot(kind: Kind, slot: u32, theirs: &Names, own: &Names) -> Option<u32> {
    match kind {
        // Numbers of zones are slots and one; the gateway itself is the same everywhere.
        Kind::Zone if slot == u32::from(SELF) => Some(slot),
        Kind::Zone => {
            let name = theirs.name(kind, slot.checked_sub(1)?)?;
            own.slot(kind, name).map(|slot| slot + 1)
        }
        Kind::Interface
        | Kind::Vrf
        | Kind::Rule
        | Kind::NatRule
        | Kind::Pool
        | Kind::Backend
        | Kind::Bridge => own.slot(kind, theirs.name(kind, slot)?),
    }
}
