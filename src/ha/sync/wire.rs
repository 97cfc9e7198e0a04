//! What goes over the wire: datagrams, blocks, records. All numbers are big-endian.
//!
//! ```text
//! datagram   magic "SGPR" · version · lowest version understood · 2 reserved · sender's boot · receiver's boot ·
//!            number · blocks · tag of 16 bytes: HMAC-SHA-256 over all before it, truncated (RFC 2104 section 5)
//! block      kind · length (2) · body; of a kind that is not known it is passed over
//! records    in a block of data: kind · length (1) · body, likewise
//! ```

use crate::flow::Tuple;
use crate::flow::changes::Gone;
use crate::flow::digest::{MOST, Slices};
use crate::flow::flow_record::{FlowRecord, InTable, Kind, Name, Port, Upper};
use crate::flow::proxy::Proxy;
use crate::flow::tcp::Tcp;
use crate::neighbours::is_v4_key;

/// The version that this node speaks, and the oldest that it understands. Since 2 nodes say which life they are in, and audit
/// each other ([`Block::Sums`]); since 3 they write each other letters ([`Block::Letter`]); since 4 they tell of sessions
/// between members of bridges ([`Kind::Bridge`]).
pub const VERSIONS: (u8, u8) = (4, 1);
/// The first version that knows of bridges. Who tells less has other sums.
pub const BRIDGES: u8 = 4;
/// The first version that reads letters.
pub const LETTERS: u8 = 3;
/// The first version that compares configs.
pub const CONFIGS: u8 = 2;
/// Longest datagram: with IPv6 and UDP headers it fits a link of 1,500 bytes.
pub const DATAGRAM_BYTES: usize = 1452;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of the tag.
pub const TAG_BYTES: usize = 16;
/// Longest body of a block of data.
pub const DATA_BYTES: usize = DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES - BLOCK_BYTES - DATA_HEADER_BYTES;
/// Bytes before the records of a block of data: stream, sequence number, names needed.
pub const DATA_HEADER_BYTES: usize = 2 + 8 + 4;
/// Longest name; what is longer goes by its hash.
pub const NAME_BYTES: usize = 200;

/// Bytes of a slice's number and its sum.
const SUM_BYTES: usize = 2 + 8;
/// Sums in a block of them at most.
pub const SUMS: usize = (DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES - BLOCK_BYTES - 8) / SUM_BYTES;

/// Longest piece of a letter: number, length and place come before it.
pub const LETTER_PIECE_BYTES: usize = DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES - BLOCK_BYTES - 12;

const MAGIC: [u8; 4] = *b"SGPR";
const BLOCK_BYTES: usize = 3;

/// The header of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version that the sender speaks, and the oldest that it understands.
    pub versions: (u8, u8),
    /// Which run of the sender this is: a random number.
    pub from: u64,
    /// Which run of the receiver it is meant for, as far as the sender knows; else 0.
    pub to: u64,
    /// Higher with each datagram of a run.
    pub number: u64,
}

impl Header {
    /// As on the wire.
    pub fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        (bytes[4], bytes[5]) = self.versions;
        for (at, word) in [(8, self.from), (16, self.to), (24, self.number)] {
            bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// `None`: that is no datagram of ours.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let word = |at: usize| bytes[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        (bytes[..4] == MAGIC).then(|| Header {
            versions: (bytes[4], bytes[5]),
            from: word(8),
            to: word(16),
            number: word(24),
        })
    }
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// How many streams the sender has: 0 for names, the rest one for each of its workers.
    Hello {
        /// That many.
        streams: u16,
        /// Which life of the process it is, a random number; 0: its version does not say. A run is over when the peer was
        /// not heard for a while; sessions are gone when a life is.
        life: u64,
    },
    /// Records of a stream.
    Data {
        /// Which.
        stream: u16,
        /// Its sequence number, from 1 on.
        seq: u64,
        /// Names that have to be known for them.
        names: u32,
        /// The records.
        records: &'a [u8],
    },
    /// What has been received of a stream.
    Ack {
        /// Which.
        stream: u16,
        /// All before this.
        next: u64,
        /// If not 0: what is missing ends before this.
        until: u64,
    },
    /// What has been sent of a stream: the next block will have this sequence number.
    State {
        /// Which.
        stream: u16,
        /// The number.
        next: u64,
    },
    /// Please tell everything again.
    Again,
    /// Sums over slices of the sender's sessions ([`crate::flow::digest`]), as a look at all of them has found them.
    Sums {
        /// Which look.
        round: u32,
        /// The first and the last slice that this is about.
        slices: (u16, u16),
        /// Those that are not 0, in ascending order: number and sum of each.
        sums: &'a [u8],
    },
    /// The sender's config: name and hash of each section ([`crate::config::Config::sections`]).
    Config {
        /// As [`emit_section`] writes them.
        sections: &'a [u8],
    },
    /// A piece of a letter ([`super::letters`]).
    Letter {
        /// Which letter of this run of both, from 1 on.
        number: u32,
        /// Bytes of all of it.
        len: u32,
        /// Where the piece belongs.
        at: u32,
        /// The piece.
        piece: &'a [u8],
    },
    /// What has been received of letters.
    LetterAck {
        /// All before this.
        number: u32,
        /// And so many bytes of it.
        bytes: u32,
    },
}

/// Sections of a config at most, and bytes of the name of one.
const SECTIONS: usize = 40;
const SECTION_NAME: usize = 20;

/// The sections of a block of them. `None`: it is cut short, or there are too many.
pub fn sections(bytes: &[u8]) -> Option<Vec<(String, u64)>> {
    let mut read = Read(bytes);
    let mut sections = Vec::new();
    while !read.0.is_empty() {
        let len = usize::from(read.u8()?);
        let name = std::str::from_utf8(read.take(len)?).ok()?;
        if sections.len() == SECTIONS
            || len > SECTION_NAME
            || !name.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return None;
        }
        sections.push((name.to_owned(), read.u64()?));
    }
    Some(sections)
}

/// Appends a section of a config. One that has no place is left out: longer names than ours, or more of them, are a bug.
pub fn emit_section(name: &str, hash: u64, out: &mut Vec<u8>) {
    if name.len() <= SECTION_NAME && out.len() <= (SECTIONS - 1) * (1 + SECTION_NAME + 8) {
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
        out.extend(hash.to_be_bytes());
    }
}

/// Slices and their sums, in a block of them. `None`: they are not in order, or not those that the block is about.
pub fn sums(bytes: &[u8], slices: (u16, u16)) -> Option<Vec<(u16, u64)>> {
    let mut read = Read(bytes);
    let mut sums: Vec<(u16, u64)> = Vec::with_capacity(bytes.len() / SUM_BYTES);
    while !read.0.is_empty() {
        let (slice, sum) = (read.u16()?, read.u64()?);
        let is_next = sums.last().is_none_or(|(before, _)| *before < slice);
        if !is_next || slice < slices.0 || slice > slices.1 {
            return None;
        }
        sums.push((slice, sum));
    }
    Some(sums)
}

/// Appends a slice and its sum.
pub fn emit_sum(slice: u16, sum: u64, out: &mut Vec<u8>) {
    out.extend(slice.to_be_bytes());
    out.extend(sum.to_be_bytes());
}

impl Block<'_> {
    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        BLOCK_BYTES
            + match self {
                Block::Hello { .. } => 10,
                Block::Data { records, .. } => DATA_HEADER_BYTES + records.len(),
                Block::Ack { .. } => 18,
                Block::State { .. } => 10,
                Block::Again => 0,
                Block::Sums { sums, .. } => 8 + sums.len(),
                Block::Config { sections } => sections.len(),
                Block::Letter { piece, .. } => 12 + piece.len(),
                Block::LetterAck { .. } => 8,
            }
    }

    /// Appends it.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let (kind, len) = (self.kind(), (self.bytes() - BLOCK_BYTES) as u16);
        out.push(kind);
        out.extend(len.to_be_bytes());
        match self {
            Block::Hello { streams, life } => {
                out.extend(streams.to_be_bytes());
                out.extend(life.to_be_bytes());
            }
            Block::Data { stream, seq, names, records } => {
                out.extend(stream.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(names.to_be_bytes());
                out.extend(*records);
            }
            Block::Ack { stream, next, until } => {
                out.extend(stream.to_be_bytes());
                out.extend(next.to_be_bytes());
                out.extend(until.to_be_bytes());
            }
            Block::State { stream, next } => {
                out.extend(stream.to_be_bytes());
                out.extend(next.to_be_bytes());
            }
            Block::Again => {}
            Block::Sums { round, slices, sums } => {
                out.extend(round.to_be_bytes());
                [slices.0, slices.1].iter().for_each(|slice| out.extend(slice.to_be_bytes()));
                out.extend(*sums);
            }
            Block::Config { sections } => out.extend(*sections),
            Block::Letter { number, len, at, piece } => {
                [number, len, at].iter().for_each(|word| out.extend(word.to_be_bytes()));
                out.extend(*piece);
            }
            Block::LetterAck { number, bytes } => {
                [number, bytes].iter().for_each(|word| out.extend(word.to_be_bytes()));
            }
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Block::Hello { .. } => 1,
            Block::Data { .. } => 2,
            Block::Ack { .. } => 3,
            Block::State { .. } => 4,
            Block::Again => 5,
            Block::Sums { .. } => 6,
            Block::Config { .. } => 7,
            Block::Letter { .. } => 8,
            Block::LetterAck { .. } => 9,
        }
    }
}

/// The blocks of a datagram, of kinds that are known. An error: it is cut short.
pub fn blocks(mut bytes: &[u8]) -> impl Iterator<Item = Result<Block<'_>, Cut>> {
    std::iter::from_fn(move || {
        while !bytes.is_empty() {
            let mut read = Read(bytes);
            let body = (|| {
                let kind = read.u8()?;
                let len = read.u16()?;
                Some((kind, read.take(len.into())?))
            })();
            let Some((kind, body)) = body else {
                bytes = &[];
                return Some(Err(Cut));
            };
            bytes = read.0;
            match block(kind, body) {
                Ok(None) => {}
                Ok(Some(block)) => return Some(Ok(block)),
                Err(cut) => return Some(Err(cut)),
            }
        }
        None
    })
}

fn block(kind: u8, body: &[u8]) -> Result<Option<Block<'_>>, Cut> {
    let mut read = Read(body);
    let mut known = || {
        Some(match kind {
            // Before version 2 it ends here.
            1 => Block::Hello { streams: read.u16()?, life: read.u64().unwrap_or(0) },
            2 => {
                let (stream, seq, names) = (read.u16()?, read.u64()?, read.u32()?);
                Block::Data { stream, seq, names, records: read.0 }
            }
            3 => Block::Ack { stream: read.u16()?, next: read.u64()?, until: read.u64()? },
            4 => Block::State { stream: read.u16()?, next: read.u64()? },
            5 => Block::Again,
            6 => {
                let (round, slices) = (read.u32()?, (read.u16()?, read.u16()?));
                Block::Sums { round, slices, sums: read.0 }
            }
            7 => Block::Config { sections: read.0 },
            8 => {
                let (number, len, at) = (read.u32()?, read.u32()?, read.u32()?);
                Block::Letter { number, len, at, piece: read.0 }
            }
            9 => Block::LetterAck { number: read.u32()?, bytes: read.u32()? },
            _ => return None,
        })
    };
    match (known(), kind) {
        (Some(block), _) => Ok(Some(block)),
        (None, 1..=9) => Err(Cut),
        (None, _) => Ok(None),
    }
}

/// Something ends before it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

/// A record in a block of data.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// A session is there, or stands elsewhere.
    Is(FlowRecord),
    /// A session has ended.
    Gone(Gone),
    /// What a slot of the sender's is called.
    Name {
        /// Kind of slot.
        kind: Kind,
        /// The slot.
        slot: u32,
        /// Its name.
        name: &'a str,
    },
    /// From here on everything is told.
    Begin(u32),
    /// Everything has been told.
    End(u32),
    /// From here on everything in some slices is told.
    Part {
        /// As of [`Item::Begin`], and ended in the same way.
        number: u32,
        /// The slices.
        slices: Slices,
    },
}

impl Item<'_> {
    /// Appends it.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend([0, 0]);
        out[at] = match self {
            Item::Is(record) => {
                emit_record(record, out);
                1
            }
            Item::Gone(Gone { name, idle }) => {
                emit_name(name, out);
                out.extend(idle.to_be_bytes());
                2
            }
            Item::Name { kind, slot, name } => {
                out.push(*kind as u8);
                out.extend(slot.to_be_bytes());
                out.extend(name.as_bytes());
                3
            }
            Item::Begin(number) => {
                out.extend(number.to_be_bytes());
                4
            }
            Item::End(number) => {
                out.extend(number.to_be_bytes());
                5
            }
            Item::Part { number, slices } => {
                out.extend(number.to_be_bytes());
                slices.all().iter().for_each(|slice| out.extend(slice.to_be_bytes()));
                6
            }
        };
        out[at + 1] = (out.len() - at - 2) as u8;
    }
}

/// The records of a block; `None` for one of a kind that is not known, or that makes no sense.
pub fn items(mut bytes: &[u8]) -> impl Iterator<Item = Option<Item<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let mut read = Read(bytes);
        let item = (|| {
            let (kind, len) = (read.u8()?, read.u8()?);
            Some((kind, read.take(len.into())?))
        })();
        let Some((kind, body)) = item else {
            bytes = &[];
            return Some(None);
        };
        bytes = read.0;
        Some(parse_item(kind, body))
    })
}

fn parse_item(kind: u8, body: &[u8]) -> Option<Item<'_>> {
    let mut read = Read(body);
    Some(match kind {
        1 => Item::Is(read_record(&mut read)?),
        2 => Item::Gone(Gone { name: read_name(&mut read)?, idle: read.u32()? }),
        3 => {
            let (kind, slot) = (*Kind::ALL.get(usize::from(read.u8()?))?, read.u32()?);
            Item::Name { kind, slot, name: std::str::from_utf8(read.0).ok()? }
        }
        4 => Item::Begin(read.u32()?),
        5 => Item::End(read.u32()?),
        6 => {
            let number = read.u32()?;
            let (slices, rest) = read.0.as_chunks::<2>();
            if !rest.is_empty() || slices.len() > MOST {
                return None;
            }
            Item::Part { number, slices: Slices::of(slices.iter().map(|slice| u16::from_be_bytes(*slice))) }
        }
        _ => return None,
    })
}

/// Addresses: four bytes for IPv4, sixteen for IPv6; before them a byte with a bit for each that is of IPv6.
fn emit_addrs<const N: usize>(addrs: [u128; N], out: &mut Vec<u8>) {
    let wide = addrs.iter().enumerate().map(|(at, addr)| u8::from(!is_v4_key(*addr)) << at);
    out.push(wide.fold(0, |bits, bit| bits | bit));
    for addr in addrs {
        let bytes = addr.to_be_bytes();
        out.extend(if is_v4_key(addr) { &bytes[12..] } else { &bytes[..] });
    }
}

fn read_addrs<const N: usize>(read: &mut Read<'_>) -> Option<[u128; N]> {
    let wide = read.u8()?;
    let mut addrs = [0; N];
    for (at, addr) in addrs.iter_mut().enumerate() {
        *addr = match wide >> at & 1 {
            0 => crate::neighbours::v4_key(read.u32()?),
            // One of IPv4 has one form only.
            _ => read.u128().filter(|addr| !is_v4_key(*addr))?,
        };
    }
    Some(addrs)
}

fn emit_name(name: &Name, out: &mut Vec<u8>) {
    let Tuple { src, dst, src_port, dst_port, vrf, protocol, zero: _ } = name.tuple;
    out.extend([u8::from(name.table == InTable::V6), protocol]);
    [src_port, dst_port, vrf].iter().for_each(|word| out.extend(word.to_be_bytes()));
    emit_addrs([src, dst], out);
}

fn read_name(read: &mut Read<'_>) -> Option<Name> {
    let (table, protocol) = (read.u8()?, read.u8()?);
    let (src_port, dst_port, vrf) = (read.u16()?, read.u16()?, read.u16()?);
    let [src, dst] = read_addrs(read)?;
    let table = match table {
        0 if is_v4_key(src) && is_v4_key(dst) => InTable::V4,
        1 => InTable::V6,
        _ => return None,
    };
    Some(Name { table, tuple: Tuple { src, dst, src_port, dst_port, vrf, protocol, zero: 0 } })
}

/// Bits of what a record has.
const HAS_BACKEND: u8 = 1;
const IS_DELIVERY: u8 = 2;
const HAS_MAPPING: u8 = 4;
const HAS_BOUND: u8 = 8;
const IS_TCP: u8 = 16;
const IS_PROXIED: u8 = 32;

/// Appends a session, without kind and length.
pub fn emit_record(record: &FlowRecord, out: &mut Vec<u8>) {
    let FlowRecord { name, new, new_ports, reply_vrf, ingress, dscp, opened_with, .. } = record;
    let upper = match record.upper {
        Upper::Answered => 0,
        Upper::Tcp(_) => IS_TCP,
        Upper::Proxied(..) => IS_TCP | IS_PROXIED,
    };
    let has = |is: bool, bit: u8| if is { bit } else { 0 };
    emit_name(name, out);
    out.push(
        upper
            | has(record.backend.is_some(), HAS_BACKEND)
            | has(record.is_delivery, IS_DELIVERY)
            | has(record.mapping.is_some(), HAS_MAPPING)
            | has(record.bound.is_some(), HAS_BOUND),
    );
    emit_addrs(*new, out);
    [new_ports[0], new_ports[1], *reply_vrf, *ingress].iter().for_each(|word| out.extend(word.to_be_bytes()));
    out.extend([*dscp, *opened_with, record.zones[0], record.zones[1]]);
    out.extend(record.nat_rule.to_be_bytes());
    [record.rule, record.idle, record.age].iter().for_each(|word| out.extend(word.to_be_bytes()));
    record.backend.inspect(|backend| out.extend(backend.to_be_bytes()));
    for port in [record.mapping, record.bound].into_iter().flatten() {
        out.extend(port.addr.to_be_bytes());
        let Port { pool, port, inside_vrf, inside_port, addr: _ } = port;
        [pool, port, inside_vrf, inside_port].iter().for_each(|word| out.extend(word.to_be_bytes()));
    }
    match record.upper {
        Upper::Answered => {}
        Upper::Tcp(tcp) => out.extend(tcp.to_replica()),
        Upper::Proxied(tcp, proxy) => {
            out.extend(tcp.to_replica());
            out.extend(proxy.to_replica());
        }
    }
}

/// The session that [`emit_record`] has written. What a later version has appended is passed over.
pub fn parse_record(bytes: &[u8]) -> Option<FlowRecord> {
    read_record(&mut Read(bytes))
}

fn read_record(read: &mut Read<'_>) -> Option<FlowRecord> {
    let name = read_name(read)?;
    let has = read.u8()?;
    let new = read_addrs(read)?;
    let (new_ports, reply_vrf, ingress) = ([read.u16()?, read.u16()?], read.u16()?, read.u16()?);
    let [dscp, opened_with, from, to] = read.array()?;
    let nat_rule = read.u16()?;
    let (rule, idle, age) = (read.u32()?, read.u32()?, read.u32()?);
    let backend = if has & HAS_BACKEND != 0 { Some(read.u32()?) } else { None };
    let mut port = |bit: u8| {
        if has & bit == 0 {
            return Some(None);
        }
        let (addr, pool) = (read.u32()?, read.u16()?);
        Some(Some(Port { addr, pool, port: read.u16()?, inside_vrf: read.u16()?, inside_port: read.u16()? }))
    };
    let (mapping, bound) = (port(HAS_MAPPING)?, port(HAS_BOUND)?);
    let upper = match has & (IS_TCP | IS_PROXIED) {
        0 => Upper::Answered,
        IS_TCP => Upper::Tcp(Tcp::from_replica(read.array()?)?),
        IS_PROXIED => return None,
        _ => Upper::Proxied(Tcp::from_replica(read.array()?)?, Proxy::from_replica(read.array()?)?),
    };
    // A session's source is bound or its backend chosen, not both (they lie in one place).
    let is_whole = dscp < 64 && (bound.is_none() || backend.is_none());
    is_whole.then_some(FlowRecord {
        name,
        new,
        new_ports,
        reply_vrf,
        ingress,
        dscp,
        opened_with,
        rule,
        nat_rule,
        zones: [from, to],
        backend,
        is_delivery: has & IS_DELIVERY != 0,
        mapping,
        bound,
        upper,
        idle,
        age,
    })
}

/// What is left to read.
struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_be_bytes)
    }
}
