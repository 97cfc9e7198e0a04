//! Under a flood: sessions that were answered to survive whatever random SYNs, answers to them and RSTs come in at a full
//! table, with any number of workers; and whoever is persistent gets in.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use pcap_file::TsResolution;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use proptest::prelude::*;
use softgate::config::Config;
use softgate::packet::DropReason;
use softgate::replay::{self, Options, Report};

/// The least that a worker has room for: the table of each is full, however many share the flood.
const CAPACITY: usize = 64;
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];

const CONFIG: &str = concat!(
    include_str!("two_ports.toml"),
    r#"
[flows]
capacity = 64
[[route]]
prefix = "10.1.0.0/16"
via = ["10.0.0.2"]
[icmp]
rate = 0
[[rule]]
name = "all"
action = "allow"
"#
);

type Endpoint = (Ipv4Addr, u16);

/// A segment or datagram: from, to, and what tells it from others of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    from: Endpoint,
    to: Endpoint,
    flags: Flags,
    seq: u32,
    ack: u32,
    data: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    Udp,
    Syn,
    SynAck,
    Ack,
    Rst,
}

impl Said {
    fn port(&self) -> usize {
        usize::from(self.from.0.octets()[0] != 10)
    }

    fn frame(&self) -> Vec<u8> {
        let ip =
            PacketBuilder::ethernet2(NEIGHBOUR, GATEWAY).ipv4(self.from.0.octets(), self.to.0.octets(), 64);
        let (mut frame, body) = (Vec::new(), vec![0x5a; self.data]);
        let (from, to) = (self.from.1, self.to.1);
        if self.flags == Flags::Udp {
            ip.udp(from, to).write(&mut frame, &body).expect("a vector takes everything");
            return frame;
        }
        let tcp = ip.tcp(from, to, self.seq, 60_000);
        let tcp = match self.flags {
            Flags::Syn => tcp.syn(),
            Flags::SynAck => tcp.syn().ack(self.ack),
            Flags::Ack => tcp.ack(self.ack),
            Flags::Rst => tcp.rst().ack(self.ack),
            Flags::Udp => unreachable!("was sent above"),
        };
        tcp.write(&mut frame, &body).expect("a vector takes everything");
        frame
    }

    fn of(frame: &[u8]) -> Said {
        let sliced = SlicedPacket::from_ethernet(frame).expect("what leaves is whole");
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("only IPv4 came in") };
        let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
        match &sliced.transport {
            Some(TransportSlice::Udp(udp)) => Said {
                from: (from, udp.source_port()),
                to: (to, udp.destination_port()),
                flags: Flags::Udp,
                seq: 0,
                ack: 0,
                data: udp.payload().len(),
            },
            Some(TransportSlice::Tcp(tcp)) => Said {
                from: (from, tcp.source_port()),
                to: (to, tcp.destination_port()),
                flags: match (tcp.syn(), tcp.rst(), tcp.ack()) {
                    (true, _, false) => Flags::Syn,
                    (true, _, true) => Flags::SynAck,
                    (_, true, _) => Flags::Rst,
                    _ => Flags::Ack,
                },
                seq: tcp.sequence_number(),
                ack: if tcp.ack() { tcp.acknowledgment_number() } else { 0 },
                data: tcp.payload().len(),
            },
            other => panic!("{other:?}"),
        }
    }
}

/// A session that both sides want, and how far they have come.
struct Talk {
    ends: [Endpoint; 2],
    is_tcp: bool,
    next: [u32; 2],
}

impl Talk {
    fn new(number: u16, is_tcp: bool) -> Talk {
        let inside = (Ipv4Addr::new(10, 1, 0, 1), 1000 + number);
        let outside = (Ipv4Addr::new(198, 51, 100, 1), 443);
        // Some begin outside.
        let ends = if number.is_multiple_of(3) { [outside, inside] } else { [inside, outside] };
        Talk { ends, is_tcp, next: [1000, 0xffff_fff0] }
    }

    fn say(&mut self, side: usize, flags: Flags, data: usize) -> Said {
        let (seq, ack) = (self.next[side], self.next[1 - side]);
        let (from, to) = (self.ends[side], self.ends[1 - side]);
        if !self.is_tcp {
            return Said { from, to, flags: Flags::Udp, seq: 0, ack: 0, data };
        }
        let counted = u32::from(matches!(flags, Flags::Syn | Flags::SynAck)) + data as u32;
        self.next[side] = seq.wrapping_add(counted);
        Said { from, to, flags, seq, ack: if flags == Flags::Syn { 0 } else { ack }, data }
    }

    fn open(&mut self) -> Vec<Said> {
        match self.is_tcp {
            true => {
                vec![self.say(0, Flags::Syn, 0), self.say(1, Flags::SynAck, 0), self.say(0, Flags::Ack, 0)]
            }
            false => vec![self.say(0, Flags::Udp, 7), self.say(1, Flags::Udp, 8)],
        }
    }
}

/// One thing of the flood: who, to whom, and how far it goes.
#[derive(Clone, Copy, Debug)]
struct Noise {
    from_inside: bool,
    is_udp: bool,
    src: (u16, u16),
    dst: (u16, u16),
    /// 0: nobody answers; 1: SYN-ACK; 2: SYN-ACK and RST of whoever never asked; 3: refused.
    answer: u8,
}

impl Noise {
    fn said(&self) -> Vec<Said> {
        let [hi, lo] = self.src.0.to_be_bytes();
        let [dst_hi, dst_lo] = self.dst.0.to_be_bytes();
        let (inside, outside) = (Ipv4Addr::new(10, 1, hi | 1, lo), Ipv4Addr::new(203, 0, dst_hi, dst_lo));
        let (from, to) = match self.from_inside {
            true => ((inside, self.src.1), (outside, self.dst.1)),
            false => ((outside, self.src.1), (inside, self.dst.1)),
        };
        let flags = if self.is_udp { Flags::Udp } else { Flags::Syn };
        let first = Said { from, to, flags, seq: 100, ack: 0, data: 0 };
        if self.is_udp {
            return vec![Said { seq: 0, ..first }];
        }
        let answer = Said { from: to, to: from, flags: Flags::SynAck, seq: 500, ack: 101, data: 0 };
        let never_asked = Said { flags: Flags::Rst, seq: 101, ack: 501, ..first };
        let refused = Said { flags: Flags::Rst, seq: 0, ..answer };
        match self.answer {
            0 => vec![first],
            1 => vec![first, answer],
            2 => vec![first, answer, never_asked],
            _ => vec![first, refused],
        }
    }
}

fn write(path: &Path, frames: &[(Duration, Vec<u8>)]) {
    let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
    let file = File::create(path).expect("a file");
    let mut writer = PcapWriter::with_header(file, header).expect("a capture");
    for (time, frame) in frames {
        writer.write_packet(&PcapPacket::new(*time, frame.len() as u32, frame)).expect("a packet");
    }
}

/// Sends everything, a millisecond apart; what came out of each port.
fn replay(said: &[Said], workers: usize) -> (Report, [Vec<Said>; 2]) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut inputs = [Vec::new(), Vec::new()];
    for (ms, said) in said.iter().enumerate() {
        inputs[said.port()].push((Duration::from_millis(5_000_000 + ms as u64), said.frame()));
    }
    let names = ["in", "out"];
    for (name, frames) in names.iter().zip(&inputs) {
        write(&folder.path().join(format!("{name}.pcap")), frames);
    }
    let out = folder.path().join("out");
    let options = Options {
        inputs: names
            .iter()
            .map(|name| (name.to_string(), folder.path().join(format!("{name}.pcap"))))
            .collect(),
        out: out.clone(),
        workers,
        linger: Duration::ZERO,
        reloads: Vec::new(),
        roles: Vec::new(),
        targets: Vec::new(),
    };
    let config = Config::parse(CONFIG, "pressure.toml").expect("the config");
    let report = replay::run(&config, &options).expect("a replay");
    let read = |name: &str| -> Vec<Said> {
        let Ok(file) = File::open(out.join(format!("{name}.pcap"))) else { return Vec::new() };
        let mut reader = PcapReader::new(file).expect("a capture");
        let mut came = Vec::new();
        while let Some(packet) = reader.next_packet() {
            came.push(Said::of(&packet.expect("a packet").data));
        }
        came
    };
    (report, names.map(read))
}

/// What was said, by flow.
fn by_flow(said: &[Said]) -> BTreeMap<(Endpoint, Endpoint), Vec<Said>> {
    let mut flows: BTreeMap<_, Vec<Said>> = BTreeMap::new();
    said.iter().for_each(|said| flows.entry((said.from, said.to)).or_default().push(*said));
    flows
}

fn noise() -> impl Strategy<Value = Noise> {
    (any::<[bool; 2]>(), any::<[u16; 4]>(), 0u8..4).prop_map(|([from_inside, udp], words, answer)| Noise {
        from_inside,
        is_udp: udp && words[0].is_multiple_of(3),
        src: (words[0], words[1]),
        dst: (words[2], words[3]),
        answer,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_to_survives_a_flood(
        kinds in proptest::collection::vec(any::<bool>(), 1..=CAPACITY),
        flood in proptest::collection::vec((noise(), any::<u8>(), 0usize..1400), 300..700),
        workers in prop_oneof![Just(1usize), Just(2), Just(4)],
    ) {
        let mut talks: Vec<Talk> =
            kinds.iter().enumerate().map(|(number, is_tcp)| Talk::new(number as u16, *is_tcp)).collect();
        let mut said: Vec<Said> = talks.iter_mut().flat_map(Talk::open).collect();
        for (noise, who, data) in &flood {
            said.extend(noise.said());
            let index = usize::from(*who) % talks.len();
            said.push(talks[index].say(*data & 1, Flags::Ack, *data));
        }
        for side in [0, 1] {
            said.extend(talks.iter_mut().map(|talk| talk.say(side, Flags::Ack, 10)));
        }
        // Whoever is persistent: one that begins now, with as many tries as there are sessions that may have been
        // answered to since they were last looked at.
        let room = kinds.len() < CAPACITY;
        let mut late = Talk::new(5000, true);
        let syn = late.say(0, Flags::Syn, 0);
        said.extend(std::iter::repeat_n(syn, CAPACITY));
        let (report, came) = replay(&said, workers);
        prop_assert_eq!(report.leaked_frames, 0);
        let (sent, came) = (by_flow(&said), by_flow(&[&came[0][..], &came[1][..]].concat()));
        for talk in &talks {
            for (from, to) in [(talk.ends[0], talk.ends[1]), (talk.ends[1], talk.ends[0])] {
                prop_assert_eq!(came.get(&(from, to)), sent.get(&(from, to)), "{:?}", (from, to));
            }
        }
        prop_assert!(!room || came.contains_key(&(late.ends[0], late.ends[1])), "shut out");
        // What is lost is lost for these reasons, and nothing is unaccounted for.
        let lawful = [
            DropReason::SessionTableFull,
            DropReason::TcpNoSession,
            DropReason::TcpOutOfWindow,
            DropReason::FlowConflict,
        ];
        let lost: u64 = report.totals.drops.iter().map(|(_, count)| count).sum();
        prop_assert!(report.totals.drops.iter().all(|(reason, _)| lawful.contains(reason)), "{:?}", report.totals);
        prop_assert_eq!(report.totals.sent + lost, report.totals.received);
    }
}
