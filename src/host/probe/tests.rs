//! The engine in a network in memory: peers that are built and read by etherparse, and a clock that jumps.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

const START: Nanos = Nanos::from_secs(100);
/// From one side to the other.
const WAY: Duration = Duration::from_millis(1);

/// How a peer behaves.
#[derive(Clone, Debug)]
enum Manner {
    Silent,
    Refuses,
    /// Takes connections and says nothing.
    Opens,
    /// Answers a request with these segments, so long apart, and closes the connection.
    Serves(Vec<Vec<u8>>, Duration),
    /// Answers the begin of a request with a RST.
    Resets,
    /// Closes connections without a word.
    Closes,
    /// Answers datagrams and echo requests with this instead of what they had.
    Says(Vec<u8>),
    /// Answers datagrams and echo requests with what they had.
    Echoes,
    /// Says this within TLS to whoever has asked for something.
    Secret(Vec<u8>),
    /// Answers with a packet that is broken in its n-th byte.
    Breaks(usize),
}

/// What a peer keeps of a connection.
struct Talk {
    next: u32,
    acked: u32,
    request: Vec<u8>,
    answered: bool,
    tls: Option<rustls::ServerConnection>,
}

struct Peer {
    manner: Manner,
    talks: HashMap<u16, Talk>,
    /// Connections and datagrams that have begun.
    begun: Vec<Nanos>,
    resets: usize,
    /// What the last request was.
    request: Vec<u8>,
}

enum Parcel {
    ToPeer { vrf: u16, packet: Vec<u8> },
    ToEngine { vrf: u16, packet: Vec<u8> },
}

struct Net {
    now: Nanos,
    parcels: BTreeMap<(Nanos, u64), Parcel>,
    count: u64,
    peers: HashMap<(u16, IpAddr), Peer>,
    expected: HashSet<Flow>,
    events: Vec<Event>,
    room: bool,
    files: HashMap<PathBuf, Vec<u8>>,
    unreachable: HashSet<IpAddr>,
    /// VRF in which answers come in, by that of the target; absent: the same.
    leaks: HashMap<u16, u16>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl Outside for Net {
    fn source(&mut self, vrf: u16, dst: IpAddr, from: Option<IpAddr>) -> Option<Source> {
        self.peers.get(&(vrf, dst))?;
        let own = if dst.is_ipv4() { ip("10.0.0.1") } else { ip("2001:db8::1") };
        Some(Source { addr: from.unwrap_or(own), vrf: self.leaks.get(&vrf).copied().unwrap_or(vrf) })
    }

    fn is_reachable(&mut self, _: u16, dst: IpAddr) -> bool {
        !self.unreachable.contains(&dst)
    }

    fn has_room(&mut self) -> bool {
        self.room
    }

    fn send(&mut self, vrf: u16, packet: &[u8]) {
        assert!(packet.len() <= MAX_PROBE_BYTES);
        self.put(WAY, Parcel::ToPeer { vrf, packet: packet.to_vec() });
    }

    fn expect(&mut self, flow: &Flow) -> bool {
        assert!(PORTS.contains(&flow.own_port));
        assert!(self.expected.insert(*flow), "{flow:?} is expected twice");
        true
    }

    fn forget(&mut self, flow: &Flow) {
        assert!(self.expected.remove(flow), "{flow:?} was not expected");
    }

    fn read(&mut self, file: &Path) -> io::Result<Vec<u8>> {
        self.files.get(file).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn report(&mut self, event: Event) {
        assert_eq!(event.at, self.now);
        self.events.push(event);
    }
}

impl Net {
    fn new() -> Net {
        Net {
            now: START,
            parcels: BTreeMap::new(),
            count: 0,
            peers: HashMap::new(),
            expected: HashSet::new(),
            events: Vec::new(),
            room: true,
            files: HashMap::new(),
            unreachable: HashSet::new(),
            leaks: HashMap::new(),
        }
    }

    fn put(&mut self, after: Duration, parcel: Parcel) {
        self.count += 1;
        self.parcels.insert((self.now.plus(after), self.count), parcel);
    }

    fn peer(&mut self, vrf: u16, addr: &str, manner: Manner) {
        let peer = Peer { manner, talks: HashMap::new(), begun: Vec::new(), resets: 0, request: Vec::new() };
        self.peers.insert((vrf, ip(addr)), peer);
    }

    fn at(&mut self, addr: &str) -> &mut Peer {
        self.peers.get_mut(&(0, ip(addr))).expect("a peer")
    }

    /// A packet to a peer: what it answers, and when.
    fn arrive(&mut self, vrf: u16, packet: &[u8]) {
        let sliced = SlicedPacket::from_ip(packet).expect("a packet");
        let (src, dst): (IpAddr, IpAddr) = match sliced.net.expect("IP") {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => panic!("a packet of IP"),
        };
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&(vrf, dst)) else { return };
        let builder = || match (dst, src) {
            (IpAddr::V4(dst), IpAddr::V4(src)) => PacketBuilder::ipv4(dst.octets(), src.octets(), 64),
            (IpAddr::V6(dst), IpAddr::V6(src)) => PacketBuilder::ipv6(dst.octets(), src.octets(), 64),
            _ => panic!("one family"),
        };
        let mut out: Vec<(Duration, Vec<u8>)> = Vec::new();
        match sliced.transport.expect("an upper layer") {
            TransportSlice::Tcp(tcp) => {
                assert_eq!(tcp.checksum(), checksum_of_tcp(packet), "a wrong checksum");
                let segment = |talk: &Talk, kind: &str, data: &[u8]| {
                    let tcp = builder().tcp(tcp.destination_port(), tcp.source_port(), talk.next, 60_000);
                    let tcp = match kind {
                        "syn" => tcp.syn().ack(talk.acked).options_raw(&[2, 4, 5, 0xb4]).expect("options"),
                        "fin" => tcp.fin().ack(talk.acked),
                        "rst" => tcp.rst().ack(talk.acked),
                        _ => tcp.ack(talk.acked),
                    };
                    let mut bytes = Vec::new();
                    tcp.write(&mut bytes, data).expect("a vector takes everything");
                    bytes
                };
                if tcp.rst() {
                    peer.resets += 1;
                    peer.talks.remove(&tcp.source_port());
                } else if tcp.syn() {
                    peer.begun.push(now);
                    let acked = tcp.sequence_number().wrapping_add(1);
                    let mut talk =
                        Talk { next: 0xffff_fff0, acked, request: Vec::new(), answered: false, tls: None };
                    match &peer.manner {
                        Manner::Silent => {}
                        Manner::Refuses => {
                            talk.next = 0;
                            out.push((WAY, segment(&talk, "rst", &[])));
                        }
                        Manner::Breaks(at) => {
                            let mut bytes = segment(&talk, "syn", &[]);
                            let at = at % bytes.len();
                            bytes[at] ^= 0x55;
                            out.push((WAY, bytes));
                        }
                        manner => {
                            talk.tls = matches!(manner, Manner::Secret(_)).then(tls_server);
                            out.push((WAY, segment(&talk, "syn", &[])));
                            talk.next = talk.next.wrapping_add(1);
                            if matches!(manner, Manner::Closes) {
                                out.push((WAY * 3, segment(&talk, "fin", &[])));
                                talk.next = talk.next.wrapping_add(1);
                            }
                            peer.talks.insert(tcp.source_port(), talk);
                        }
                    }
                } else if let Some(talk) = peer.talks.get_mut(&tcp.source_port())
                    && !tcp.payload().is_empty()
                    && tcp.sequence_number() == talk.acked
                {
                    talk.acked = talk.acked.wrapping_add(tcp.payload().len() as u32);
                    talk.request.extend_from_slice(tcp.payload());
                    peer.request = talk.request.clone();
                    match &peer.manner {
                        Manner::Secret(said) => {
                            let tls = talk.tls.as_mut().expect("it was there from the begin");
                            let mut bytes = tcp.payload();
                            let mut heard = Vec::new();
                            while !bytes.is_empty() {
                                tls.read_tls(&mut bytes).expect("from memory");
                                let _ = tls.process_new_packets();
                                let _ = tls.reader().read_to_end(&mut heard);
                            }
                            if heard.ends_with(b"\r\n\r\n") {
                                peer.request = heard;
                                tls.writer().write_all(said).expect("to memory");
                                tls.send_close_notify();
                            }
                            let mut bytes = Vec::new();
                            while tls.wants_write() {
                                tls.write_tls(&mut bytes).expect("to memory");
                            }
                            for part in bytes.chunks(700) {
                                out.push((WAY, segment(talk, "", part)));
                                talk.next = talk.next.wrapping_add(part.len() as u32);
                            }
                        }
                        Manner::Resets => out.push((WAY, segment(talk, "rst", &[]))),
                        Manner::Serves(parts, gap)
                            if talk.request.ends_with(b"\r\n\r\n") && !talk.answered =>
                        {
                            talk.answered = true;
                            let mut after = WAY;
                            for part in parts {
                                out.push((after, segment(talk, "", part)));
                                talk.next = talk.next.wrapping_add(part.len() as u32);
                                after += *gap;
                            }
                            out.push((after, segment(talk, "fin", &[])));
                            talk.next = talk.next.wrapping_add(1);
                        }
                        _ => out.push((WAY, segment(talk, "", &[]))),
                    }
                }
            }
            TransportSlice::Udp(udp) => {
                peer.begun.push(now);
                if matches!(peer.manner, Manner::Refuses) {
                    // With what was refused (RFC 792, RFC 4443 section 3.1).
                    let mut bytes = Vec::new();
                    let v4 = etherparse::icmpv4::DestUnreachableHeader::Port;
                    let v6 = etherparse::icmpv6::DestUnreachableCode::Port;
                    let written = match dst {
                        IpAddr::V4(_) => {
                            builder().icmpv4(Icmpv4Type::DestinationUnreachable(v4)).write(&mut bytes, packet)
                        }
                        IpAddr::V6(_) => {
                            builder().icmpv6(Icmpv6Type::DestinationUnreachable(v6)).write(&mut bytes, packet)
                        }
                    };
                    written.expect("a vector takes everything");
                    self.put(WAY, Parcel::ToEngine { vrf, packet: bytes });
                    return;
                }
                let said = match &peer.manner {
                    Manner::Echoes | Manner::Breaks(_) => udp.payload(),
                    Manner::Says(said) => said,
                    _ => return,
                };
                let mut bytes = Vec::new();
                let answer = builder().udp(udp.destination_port(), udp.source_port());
                answer.write(&mut bytes, said).expect("a vector takes everything");
                if let Manner::Breaks(at) = peer.manner {
                    let at = at % bytes.len();
                    bytes[at] ^= 0x55;
                }
                out.push((WAY, bytes));
            }
            TransportSlice::Igmp(_) => panic!("no multicast"),
            TransportSlice::Icmpv4(icmp) => {
                peer.begun.push(now);
                let Icmpv4Type::EchoRequest(header) = icmp.icmp_type() else { panic!("an echo request") };
                let said = match &peer.manner {
                    Manner::Echoes => icmp.payload(),
                    Manner::Says(said) => said,
                    _ => return,
                };
                let mut bytes = Vec::new();
                builder().icmpv4_echo_reply(header.id, header.seq).write(&mut bytes, said).expect("bytes");
                out.push((WAY, bytes));
            }
            TransportSlice::Icmpv6(icmp) => {
                peer.begun.push(now);
                let Icmpv6Type::EchoRequest(header) = icmp.icmp_type() else { panic!("an echo request") };
                assert!(icmp.is_checksum_valid(
                    match src {
                        IpAddr::V6(src) => src.octets(),
                        _ => panic!(),
                    },
                    match dst {
                        IpAddr::V6(dst) => dst.octets(),
                        _ => panic!(),
                    }
                ));
                if matches!(peer.manner, Manner::Echoes) {
                    let mut bytes = Vec::new();
                    let reply = builder().icmpv6_echo_reply(header.id, header.seq);
                    reply.write(&mut bytes, icmp.payload()).expect("bytes");
                    out.push((WAY, bytes));
                }
            }
        }
        let vrf = self.leaks.get(&vrf).copied().unwrap_or(vrf);
        out.into_iter().for_each(|(after, packet)| self.put(after, Parcel::ToEngine { vrf, packet }));
    }
}

/// The server of `tests/tls`.
fn tls_server() -> rustls::ServerConnection {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("../../../tests/tls/server.pem"));
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../../tests/tls/server.key"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the versions there are")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.expect("a certificate")], key.expect("a key"))
        .expect("they belong together");
    rustls::ServerConnection::new(Arc::new(config)).expect("a server")
}

fn checksum_of_tcp(packet: &[u8]) -> u16 {
    let sliced = SlicedPacket::from_ip(packet).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("TCP") };
    match sliced.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
        NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
        NetSlice::Arp(_) => panic!("IP"),
    }
    .expect("a checksum")
}

/// An engine with its network.
struct Rig {
    engine: Engine,
    net: Net,
}

impl Rig {
    fn new() -> Rig {
        Rig { engine: Engine::new(Key::default(), 7), net: Net::new() }
    }

    fn set(&mut self, targets: Vec<Target>) {
        self.engine.set_targets(targets, self.net.now, &mut self.net);
    }

    /// Lets so much time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.net.now.plus(time);
        loop {
            let parcel = self.net.parcels.first_key_value().map_or(Nanos(u64::MAX), |((at, _), _)| *at);
            let next = parcel.min(self.engine.next_deadline()).max(self.net.now);
            if next > end {
                break;
            }
            self.net.now = next;
            if parcel <= next
                && let Some((_, parcel)) = self.net.parcels.pop_first()
            {
                match parcel {
                    Parcel::ToPeer { vrf, packet } => self.net.arrive(vrf, &packet),
                    Parcel::ToEngine { vrf, packet } => {
                        let (l4, upper) = match packet[0] >> 4 {
                            4 => (20, packet[9]),
                            _ => (40, packet[6]),
                        };
                        self.engine.receive((&packet, l4, upper), vrf, next, &mut self.net);
                    }
                }
            }
            self.engine.advance(next, &mut self.net);
            assert!(self.engine.next_deadline() > next);
            assert_eq!(self.engine.running(), self.net.expected.len());
        }
        self.net.now = end;
    }

    /// What has been reported since the last call.
    fn said(&mut self) -> Vec<(u32, Verdict, Reason)> {
        self.net.events.drain(..).map(|event| (event.id, event.verdict, event.reason)).collect()
    }
}

fn target(id: u32, vrf: u16, addr: &str, check: &str) -> Target {
    let check: HealthCheck = toml::from_str(check).expect("a check");
    check.check(&mut |key, value, allowed| panic!("{key}: {value:?}: {allowed}"));
    Target { id, vrf, addr: ip(addr), port: 8080, check: Arc::new(check) }
}

fn served(text: &str) -> Manner {
    Manner::Serves(vec![text.as_bytes().to_vec()], Duration::ZERO)
}

const TCP: &str = "type = \"tcp\"\ninterval = \"1s\"\nrise = 2\nfall = 3";

/// What a single probe comes to; a check falls at once.
fn probe(manner: Manner, check: &str, addr: &str) -> (Verdict, Reason, Duration) {
    let mut rig = Rig::new();
    rig.net.peer(0, addr, manner);
    rig.set(vec![target(1, 0, addr, &format!("{check}\nfall = 1"))]);
    while rig.net.events.is_empty() {
        rig.pass(Duration::from_millis(10));
    }
    let event = rig.net.events[0];
    let status = rig.engine.status_of(1).expect("a target");
    assert_eq!(status.last, Some((event.reason, event.latency, event.at)));
    (event.verdict, event.reason, event.latency)
}

#[test]
fn what_peers_do_and_what_is_said_of_it() {
    use Reason::*;
    let http = "type = \"http\"\nbody = \"all is well\"";
    let slow = Manner::Serves(
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well".chunks(1).map(<[u8]>::to_vec).collect(),
        Duration::from_millis(5),
    );
    let too_slow =
        Manner::Serves(vec![b"HTTP/1.1 200 OK\r\n\r\nall".to_vec(); 40], Duration::from_millis(50));
    let large = Manner::Serves(
        [&b"HTTP/1.1 200 OK\r\n\r\n"[..]]
            .into_iter()
            .chain((0..5).map(|_| &[b'x'; 800][..]))
            .chain([&b"all is well"[..]])
            .map(<[u8]>::to_vec)
            .collect(),
        WAY,
    );
    let cases: Vec<(&str, Manner, &str, Reason)> = vec![
        ("open", Manner::Opens, "type = \"tcp\"", Ok),
        ("refused", Manner::Refuses, "type = \"tcp\"", Refused),
        ("silent", Manner::Silent, "type = \"tcp\"", Timeout),
        ("refused http", Manner::Refuses, http, Refused),
        ("a server that says nothing", Manner::Opens, http, Timeout),
        ("a server that closes", Manner::Closes, http, Closed),
        ("a RST in the middle", Manner::Resets, http, Reset),
        ("as it should be", served("HTTP/1.1 200 OK\r\n\r\nand all is well"), http, Ok),
        ("another status", served("HTTP/1.1 503 No\r\n\r\nall is well"), http, Status(503)),
        ("another body", served("HTTP/1.1 200 OK\r\n\r\nall is lost"), http, Body),
        ("another protocol", served("SSH-2.0-OpenSSH\r\n"), http, Protocol),
        ("an answer without end", served("HTTP/1.1 200 OK"), http, Closed),
        ("a split answer", slow, http, Ok),
        ("a slow body", too_slow, http, Timeout),
        ("more than the window", large, http, Ok),
        ("udp", Manner::Echoes, "type = \"udp\"\nsend = \"ping\"\nexpect = \"pi\"", Ok),
        ("any answer", Manner::Says(vec![]), "type = \"udp\"", Ok),
        (
            "another answer",
            Manner::Says(b"pong".to_vec()),
            "type = \"udp\"\nsend = \"ping\"\nexpect = \"pi\"",
            Answer,
        ),
        ("no answer", Manner::Silent, "type = \"udp\"\nsend = \"hex:00ff\"", Timeout),
        ("a closed port", Manner::Refuses, "type = \"udp\"\nsend = \"ping\"", Refused),
        ("echo", Manner::Echoes, "type = \"icmp\"", Ok),
        ("no echo", Manner::Silent, "type = \"icmp\"", Timeout),
    ];
    for (name, manner, check, expected) in cases {
        for addr in ["10.0.0.10", "2001:db8::10"] {
            let (verdict, reason, latency) = probe(manner.clone(), check, addr);
            assert_eq!(reason, expected, "{name}, {addr}");
            assert_eq!(verdict == Verdict::Up, reason == Ok, "{name}, {addr}");
            match reason {
                Timeout => assert_eq!(latency, Duration::from_secs(1), "half the interval: {name}"),
                _ => assert!(latency >= 2 * WAY && latency < Duration::from_secs(1), "{name}: {latency:?}"),
            }
        }
    }
    // An echo that brings something else back is not ours: we go on waiting.
    assert_eq!(probe(Manner::Says(b"other".to_vec()), "type = \"icmp\"", "10.0.0.10").1, Timeout);
}

#[test]
fn a_server_that_speaks_tls() {
    use Reason::*;
    let fine = "HTTP/1.1 200 OK\r\n\r\nall is well";
    let https = "type = \"https\"\nbody = \"well\"";
    let verified = |ca: &str, host: &str| format!("{https}\nverify = true\nca = \"{ca}\"{host}");
    let named = "\nhost = \"shop.example:8080\"";
    let addr = "192.0.2.10";
    let secret = |text: &str| Manner::Secret(text.as_bytes().to_vec());
    let cases = [
        ("any certificate", secret(fine), https.to_owned(), Ok),
        ("the right one", secret(fine), verified("ca.pem", named), Ok),
        ("the right one, by address", secret(fine), verified("ca.pem", ""), Ok),
        ("another name", secret(fine), verified("ca.pem", "\nhost = \"other.example\""), Tls),
        ("another authority", secret(fine), verified("other-ca.pem", named), Tls),
        ("no such file", secret(fine), verified("none.pem", named), Tls),
        ("no authorities", secret(fine), verified("broken.pem", named), Tls),
        ("another status", secret("HTTP/1.1 503 No\r\n\r\n"), https.to_owned(), Status(503)),
        ("another body", secret("HTTP/1.1 200 OK\r\n\r\nall is lost"), https.to_owned(), Body),
        ("without TLS", served(fine), https.to_owned(), Timeout),
        ("garbage", Manner::Says(vec![]), https.to_owned(), Timeout),
        ("a server that closes", Manner::Closes, https.to_owned(), Closed),
        ("a RST in the middle", Manner::Resets, https.to_owned(), Reset),
    ];
    for (name, manner, check, expected) in cases {
        let mut rig = Rig::new();
        for (file, bytes) in [
            ("ca.pem", &include_bytes!("../../../tests/tls/ca.pem")[..]),
            ("other-ca.pem", include_bytes!("../../../tests/tls/other-ca.pem")),
            ("broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ] {
            rig.net.files.insert(file.into(), bytes.to_vec());
        }
        rig.net.peer(0, addr, manner);
        rig.set(vec![target(1, 0, addr, &format!("{check}\nfall = 1"))]);
        rig.pass(Duration::from_millis(2500));
        let status = rig.engine.status_of(1).expect("a target");
        assert_eq!(status.last.map(|(reason, ..)| reason), Some(expected), "{name}");
        if expected == Ok {
            assert!(rig.net.at(addr).request.starts_with(b"GET / HTTP/1.1\r\nHost: "), "{name}");
        }
    }
}

#[test]
fn broken_packets_are_none() {
    for at in 0..48 {
        let (_, reason, _) = probe(Manner::Breaks(at), "type = \"tcp\"\ninterval = \"100ms\"", "10.0.0.10");
        // Some bytes count for nothing here: DSCP, TTL ... but all are in the header's checksum.
        assert_eq!(reason, Reason::Timeout, "byte {at} of a SYN-ACK");
    }
    for at in 20..32 {
        let check = "type = \"udp\"\ninterval = \"100ms\"\nsend = \"ping\"";
        assert_eq!(
            probe(Manner::Breaks(at), check, "10.0.0.10").1,
            Reason::Timeout,
            "byte {at} of a datagram"
        );
    }
}

#[test]
fn a_target_falls_and_rises_by_its_thresholds() {
    let mut rig = Rig::new();
    rig.net.peer(0, "10.0.0.10", Manner::Opens);
    rig.set(vec![target(7, 0, "10.0.0.10", TCP)]);
    assert_eq!(rig.engine.status_of(7).expect("a target").verdict, None);
    rig.pass(Duration::from_millis(1100));
    // Nothing speaks against it: the first answer is enough.
    assert_eq!(rig.said(), [(7, Verdict::Up, Reason::Ok)]);
    rig.net.at("10.0.0.10").manner = Manner::Refuses;
    // Three times at most a second apart.
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.said(), [(7, Verdict::Down, Reason::Refused)]);
    rig.net.at("10.0.0.10").manner = Manner::Opens;
    rig.pass(Duration::from_millis(850));
    assert_eq!(rig.said(), []);
    rig.pass(Duration::from_millis(1300));
    assert_eq!(rig.said(), [(7, Verdict::Up, Reason::Ok)]);
    let status = rig.engine.status_of(7).expect("a target");
    assert_eq!((status.verdict, status.failures), (Some(Verdict::Up), 3));
    // Every connection was ended by us, with a RST.
    let peer = rig.net.at("10.0.0.10");
    assert_eq!(peer.resets as u64, status.probes - status.failures);
    assert!(peer.talks.is_empty());
}

#[test]
fn flapping_below_the_thresholds_is_no_news() {
    let mut rig = Rig::new();
    rig.net.peer(0, "10.0.0.10", Manner::Opens);
    rig.set(vec![target(7, 0, "10.0.0.10", TCP)]);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.said().len(), 1);
    let mut bad = 0;
    for round in 0..200 {
        // Two bad ones, a good one.
        let begun = rig.net.at("10.0.0.10").begun.len();
        let manner = if round % 3 == 2 { Manner::Opens } else { Manner::Refuses };
        bad += u64::from(round % 3 != 2);
        rig.net.at("10.0.0.10").manner = manner;
        while rig.net.at("10.0.0.10").begun.len() == begun {
            rig.pass(Duration::from_millis(10));
        }
        rig.pass(Duration::from_millis(10));
    }
    assert_eq!(rig.said(), []);
    assert_eq!(rig.engine.status_of(7).expect("a target").failures, bad);
}

#[test]
fn one_that_never_answered_is_down_after_as_many_failures() {
    let mut rig = Rig::new();
    rig.net.peer(0, "10.0.0.10", Manner::Silent);
    rig.net.peer(0, "10.0.0.11", Manner::Silent);
    rig.net.unreachable.insert(ip("10.0.0.11"));
    rig.set(vec![
        target(1, 0, "10.0.0.10", TCP),
        target(2, 0, "10.0.0.11", TCP),
        target(3, 0, "10.0.0.12", TCP),
    ]);
    rig.pass(Duration::from_secs(5));
    let mut said = rig.said();
    said.sort_unstable_by_key(|(id, ..)| *id);
    let down = |id, reason| (id, Verdict::Down, reason);
    assert_eq!(said, [down(1, Reason::Timeout), down(2, Reason::Unreachable), down(3, Reason::NoRoute)]);
    assert_eq!(rig.net.at("10.0.0.10").resets, 0, "nobody was there to be told");
}

#[test]
fn probes_are_an_interval_apart_with_jitter() {
    let mut rig = Rig::new();
    for host in 10..20 {
        rig.net.peer(0, &format!("10.0.0.{host}"), Manner::Opens);
    }
    rig.set((10..20).map(|host| target(host, 0, &format!("10.0.0.{host}"), TCP)).collect());
    rig.pass(Duration::from_secs(200));
    let mut firsts = HashSet::new();
    for host in 10..20 {
        let begun = &rig.net.at(&format!("10.0.0.{host}")).begun;
        firsts.insert(begun[0]);
        let gaps: HashSet<Duration> = begun.windows(2).map(|two| two[1].since(two[0])).collect();
        assert!(gaps.len() > 100, "they differ");
        assert!(gaps.iter().all(|gap| (Duration::from_millis(900)..=Duration::from_secs(1)).contains(gap)));
    }
    assert_eq!(firsts.len(), 10);
    assert!(firsts.iter().all(|first| first.since(START) <= Duration::from_secs(1) + WAY));
}

#[test]
fn tenants_may_share_addresses() {
    let mut rig = Rig::new();
    rig.net.peer(0, "10.0.0.10", Manner::Opens);
    rig.net.peer(1, "10.0.0.10", Manner::Refuses);
    rig.net.peer(2, "10.0.0.10", Manner::Opens);
    // What VRF 2 asks is answered by way of VRF 9.
    rig.net.leaks.insert(2, 9);
    rig.set((0..3).map(|vrf| target(vrf.into(), vrf, "10.0.0.10", TCP)).collect());
    rig.pass(Duration::from_secs(10));
    let verdict = |id| rig.engine.status_of(id).expect("a target").verdict;
    let (up, down) = (Some(Verdict::Up), Some(Verdict::Down));
    assert_eq!([verdict(0), verdict(1), verdict(2)], [up, down, up]);
}

#[test]
fn a_change_leaves_what_is_the_same_alone() {
    let mut rig = Rig::new();
    for host in 10..14 {
        rig.net.peer(0, &format!("10.0.0.{host}"), Manner::Opens);
    }
    let of = |id, host: u32, check| target(id, 0, &format!("10.0.0.{host}"), check);
    rig.set(vec![of(1, 10, TCP), of(2, 11, TCP), of(3, 12, TCP)]);
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.said().len(), 3);
    let before = rig.engine.status_of(1);
    // 1 as it was, 2 more often, 3 somewhere else, and a new one.
    let often = TCP.replace("1s", "100ms");
    rig.set(vec![of(1, 10, TCP), of(2, 11, &often), of(3, 13, TCP), of(4, 12, TCP)]);
    assert_eq!(rig.engine.status_of(1), before);
    assert_eq!(rig.engine.status_of(2).expect("a target").verdict, Some(Verdict::Up));
    assert_eq!(rig.engine.status_of(3).expect("a target").verdict, None);
    let asked = rig.net.at("10.0.0.11").begun.len();
    rig.pass(Duration::from_secs(2));
    assert!(rig.net.at("10.0.0.11").begun.len() >= asked + 19);
    let mut said = rig.said();
    said.sort_unstable_by_key(|(id, ..)| *id);
    assert_eq!(said, [(3, Verdict::Up, Reason::Ok), (4, Verdict::Up, Reason::Ok)]);
    // In the middle of probes: nothing stays behind.
    for host in 10..14 {
        rig.net.at(&format!("10.0.0.{host}")).manner = Manner::Silent;
    }
    rig.pass(Duration::from_millis(950));
    rig.set(Vec::new());
    assert!(rig.engine.is_empty() && rig.engine.running() == 0 && rig.net.expected.is_empty());
    assert_eq!(rig.engine.next_deadline(), Nanos(u64::MAX));
}

#[test]
fn what_finds_no_room_waits_and_fails_nobody() {
    let mut rig = Rig::new();
    rig.net.peer(0, "10.0.0.10", Manner::Opens);
    rig.set(vec![target(1, 0, "10.0.0.10", TCP)]);
    rig.net.room = false;
    rig.pass(Duration::from_secs(20));
    assert_eq!((rig.said(), rig.engine.status_of(1).expect("a target").probes), (vec![], 0));
    assert!(rig.engine.put_off() > 100);
    rig.net.room = true;
    rig.pass(Duration::from_millis(20));
    assert_eq!(rig.said(), [(1, Verdict::Up, Reason::Ok)]);
}

#[test]
fn requests_say_what_was_configured() {
    let check = "type = \"http\"\nmethod = \"HEAD\"\npath = \"/up\"\nhost = \"shop.example\"\nport = 81";
    let check = &format!("{check}\nfrom = \"10.0.0.77\"");
    let mut rig = Rig::new();
    rig.net.peer(0, "10.0.0.10", served("HTTP/1.1 204\r\n"));
    rig.set(vec![target(1, 0, "10.0.0.10", check)]);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.said(), [(1, Verdict::Up, Reason::Ok)]);
    let request = String::from_utf8(rig.net.at("10.0.0.10").request.clone()).expect("ASCII");
    assert!(request.starts_with("HEAD /up HTTP/1.1\r\nHost: shop.example\r\n"), "{request}");
}

#[test]
fn ten_thousand_targets() {
    let mut rig = Rig::new();
    let addr = |n: u32| format!("10.1.{}.{}", n / 250, n % 250 + 1);
    for n in 0..10_000 {
        rig.net.peer(0, &addr(n), if n % 10 == 0 { Manner::Silent } else { Manner::Opens });
    }
    rig.set((0..10_000).map(|n| target(n, 0, &addr(n), TCP)).collect());
    rig.pass(Duration::from_secs(6));
    let said = rig.said();
    let up = said.iter().filter(|(id, verdict, _)| id % 10 != 0 && *verdict == Verdict::Up).count();
    let down = said.iter().filter(|(id, verdict, _)| id % 10 == 0 && *verdict == Verdict::Down).count();
    assert_eq!((up, down, said.len()), (9000, 1000, 10_000));
    assert_eq!(rig.engine.put_off(), 0);
    // A rack goes dark: all are noticed, in their time.
    rig.net.peers.values_mut().for_each(|peer| peer.manner = Manner::Silent);
    rig.pass(Duration::from_millis(3600));
    assert_eq!(rig.said().len(), 9000);
    assert!(rig.engine.running() > 4000, "half of the time they wait: {}", rig.engine.running());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The twin: a target's verdict by counting backwards through what its probes came to.
    #[test]
    fn verdicts_follow_from_the_results(
        rise in 1u32..4,
        fall in 1u32..4,
        results in proptest::collection::vec(any::<bool>(), 1..40),
    ) {
        let mut rig = Rig::new();
        rig.net.peer(0, "10.0.0.10", Manner::Opens);
        let check = format!("type = \"tcp\"\ninterval = \"1s\"\nrise = {rise}\nfall = {fall}");
        rig.set(vec![target(1, 0, "10.0.0.10", &check)]);
        let mut expected: Option<Verdict> = None;
        for (at, good) in results.iter().enumerate() {
            rig.net.at("10.0.0.10").manner = if *good { Manner::Opens } else { Manner::Refuses };
            while rig.engine.status_of(1).expect("a target").probes == at as u64 {
                rig.pass(Duration::from_millis(20));
            }
            let in_a_row = results[..=at].iter().rev().take_while(|result| *result == good).count() as u32;
            expected = match (expected, good) {
                (None, true) => Some(Verdict::Up),
                (_, true) if in_a_row >= rise => Some(Verdict::Up),
                (_, false) if in_a_row >= fall => Some(Verdict::Down),
                (before, _) => before,
            };
            prop_assert_eq!(rig.engine.status_of(1).expect("a target").verdict, expected);
        }
    }

    /// Whatever comes instead of an answer: nothing breaks, and the next probe is as good as ever.
    #[test]
    fn garbage_does_no_harm(
        packets in proptest::collection::vec((0usize..60, proptest::collection::vec(any::<u8>(), 0..64)), 1..20),
        upper in prop_oneof![Just(6u8), Just(17), Just(1), any::<u8>()],
        is_v6 in any::<bool>(),
    ) {
        let mut rig = Rig::new();
        let addr = if is_v6 { "2001:db8::10" } else { "10.0.0.10" };
        rig.net.peer(0, addr, Manner::Silent);
        rig.set(vec![
            target(1, 0, addr, TCP),
            target(2, 0, addr, "type = \"udp\"\ninterval = \"1s\""),
            target(3, 0, addr, "type = \"icmp\"\ninterval = \"1s\""),
        ]);
        rig.pass(Duration::from_millis(1001));
        let flows: Vec<Flow> = rig.net.expected.iter().copied().collect();
        for (at, (len, bytes)) in packets.iter().enumerate() {
            let Some(flow) = flows.get(at % flows.len().max(1)) else { continue };
            // The right flow, and then anything.
            let (header, l4) = if is_v6 { (40, 40) } else { (20, 20) };
            let mut packet = vec![0; header];
            packet[0] = if is_v6 { 0x60 } else { 0x45 };
            match (flow.peer, flow.own) {
                (IpAddr::V4(peer), IpAddr::V4(own)) => {
                    packet[12..16].copy_from_slice(&peer.octets());
                    packet[16..20].copy_from_slice(&own.octets());
                }
                (IpAddr::V6(peer), IpAddr::V6(own)) => {
                    packet[8..24].copy_from_slice(&peer.octets());
                    packet[24..40].copy_from_slice(&own.octets());
                }
                _ => unreachable!("one family"),
            }
            packet.extend(flow.peer_port.to_be_bytes());
            packet.extend(flow.own_port.to_be_bytes());
            packet.extend(bytes);
            packet.truncate(header + len);
            let now = rig.net.now;
            rig.engine.receive((&packet, l4, upper), 0, now, &mut rig.net);
        }
        rig.net.peers.values_mut().for_each(|peer| peer.manner = Manner::Opens);
        rig.pass(Duration::from_secs(4));
        prop_assert_eq!(rig.engine.status_of(1).expect("a target").verdict, Some(Verdict::Up));
    }
}
