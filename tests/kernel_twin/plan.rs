//! The network, its rules as SoftGate and as nftables read them, and the random flows.
//!
//! ```text
//!   inside  10.0.1.0/24 -- lan [ gateway ] wan -- outside  198.51.100.0/24, routers .1 and .3
//!   10.8.0.0/16 behind .251       dmz                      192.0.2.0/25 behind .3, all else behind .1
//!   10.9.0.0/16 behind .252        |
//!                     servers  10.0.2.0/24, 10.20.0.0/16 behind .251; MTU 1400
//! ```

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{End, Header, ICMP, ICMPV6, TCP, UDP};

/// Ports of the gateway, by index.
pub const LINKS: [&str; 3] = ["lan", "dmz", "wan"];
pub const LAN: usize = 0;
pub const DMZ: usize = 1;
pub const WAN: usize = 2;
/// IP packets that leave by each.
pub const MTUS: [usize; 3] = [1500, 1400, 1500];
/// Own addresses, with their prefixes.
pub const OWN: [[&str; 2]; 3] = [
    ["10.0.1.1/24", "2001:db8:1::1/64"],
    ["10.0.2.1/24", "2001:db8:2::1/64"],
    ["198.51.100.2/24", "2001:db8:ff::2/64"],
];
/// Prefix and next hop.
pub const ROUTES: [(&str, &str); 7] = [
    ("10.8.0.0/16", "10.0.1.251"),
    ("10.9.0.0/16", "10.0.1.252"),
    ("10.20.0.0/16", "10.0.2.251"),
    ("192.0.2.0/25", "198.51.100.3"),
    ("0.0.0.0/0", "198.51.100.1"),
    ("2001:db8:8::/48", "2001:db8:1::251"),
    ("::/0", "2001:db8:ff::1"),
];
/// Translated addresses are no place to route to: what NAT has no answer for is lost in silence.
pub const BLACKHOLE: &str = "203.0.113.0/24";

/// MAC of the gateway on a link.
pub fn gateway_mac(link: usize) -> [u8; 6] {
    [0x02, 0, 0, 0, link as u8 + 1, 1]
}

/// MAC of a station on the link.
pub fn station_mac(addr: IpAddr) -> [u8; 6] {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x02, 0x04, a ^ b, c, 0, d]
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            [0x02, 0x06, octets[4], octets[5], octets[14], octets[15]]
        }
    }
}

/// The link an address is on, and the station there that has it or routes to it.
pub fn place(addr: IpAddr) -> (usize, IpAddr) {
    match addr {
        IpAddr::V4(v4) => match v4.octets() {
            [10, 0, 1, _] => (LAN, addr),
            [10, 8, ..] => (LAN, v4_of(10, 0, 1, 251)),
            [10, 9, ..] => (LAN, v4_of(10, 0, 1, 252)),
            [10, 0, 2, _] => (DMZ, addr),
            [10, 20, ..] => (DMZ, v4_of(10, 0, 2, 251)),
            [198, 51, 100, _] => (WAN, addr),
            [192, 0, 2, d] if d < 128 => (WAN, v4_of(198, 51, 100, 3)),
            _ => (WAN, v4_of(198, 51, 100, 1)),
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0x2001, 0xdb8, 1, 0, ..] => (LAN, addr),
            [0x2001, 0xdb8, 8, ..] => (LAN, v6_of(1, 0x251)),
            [0x2001, 0xdb8, 2, 0, ..] => (DMZ, addr),
            [0x2001, 0xdb8, 0xff, 0, ..] => (WAN, addr),
            _ => (WAN, v6_of(0xff, 1)),
        },
    }
}

fn v4_of(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

fn v6_of(net: u16, host: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host).into()
}

/// Everyone on a link: static neighbours of both systems, so that neither asks.
pub fn neighbours() -> Vec<(usize, IpAddr)> {
    let mut all = Vec::new();
    for d in (10..130).chain([251, 252]) {
        all.push((LAN, v4_of(10, 0, 1, d)));
    }
    for d in (10..30).chain([251]) {
        all.push((DMZ, v4_of(10, 0, 2, d)));
    }
    for d in [1, 3].into_iter().chain(10..60) {
        all.push((WAN, v4_of(198, 51, 100, d)));
    }
    for host in (0x10..0x40).chain([0x251]) {
        all.push((LAN, v6_of(1, host)));
    }
    for host in 0x10..0x20 {
        all.push((DMZ, v6_of(2, host)));
    }
    for host in [1].into_iter().chain(0x10..0x30) {
        all.push((WAN, v6_of(0xff, host)));
    }
    all
}

/// Rules and NAT as SoftGate reads them.
const POLICY: &str = r#"
[flows]
capacity = 100_000

[icmp]                             # each error is compared
rate = 1_000_000
burst = 1_000_000
per_source_rate = 1_000_000
per_source_burst = 1_000_000

[[admin_rule]]
name = "bad-neighbourhood"
action = "deny"
from = { zone = "outside", prefix = "192.0.2.64/26" }

[[rule]]
name = "no-mail"
action = "deny"
from = { zone = "inside" }
to = { zone = "outside" }
service = ["tcp/25", "udp/161"]

[[rule]]
name = "no-telnet"
action = "reject"
from = { zone = "inside" }
to = { zone = "outside" }
service = ["tcp/23", "udp/69"]

[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }

[[rule]]
name = "servers-out"
action = "allow"
from = { zone = "servers" }
to = { zone = "outside" }
service = ["tcp/443", "udp/53", "udp/123", "icmp/echo-request", "icmpv6/echo-request"]

[[rule]]
name = "to-servers"
action = "allow"
to = { zone = "servers" }
service = ["tcp/80", "tcp/443", "tcp/9000", "udp/53", "udp/9000", "icmp/echo-request", "icmpv6/echo-request"]

[[rule]]
name = "to-static"
action = "allow"
from = { zone = "outside" }
to = { prefix = "10.8.64.0/26" }
service = ["tcp/8000-8999", "udp/8000-8999", "icmp/echo-request", "esp"]

[[rule]]
name = "partner"
action = "allow"
from = { zone = "outside", prefix = "192.0.2.160/27" }
to = { zone = "inside", prefix = "10.9.0.0/16" }

[nat]
filtering = "address-dependent"

[[nat.source]]
name = "partner"
to = { prefix = "192.0.2.128/26" }
exempt = true

[[nat.source]]
name = "internet"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["203.0.113.0/28"]

[[nat.source]]
name = "servers"
from = { zone = "servers" }
to = { zone = "outside" }
pool = "interface"

[[nat.destination]]
name = "web"
address = "203.0.113.40"
service = "tcp/8080"
target = "10.0.2.10:80"

[[nat.destination]]
name = "dns"
address = "203.0.113.40"
service = "udp/5353"
target = "10.0.2.11:53"

[[nat.destination]]
name = "same-port"
address = "203.0.113.40"
service = "tcp/443"
target = "10.20.0.5"

[[nat.destination]]
name = "whole-address"
address = "203.0.113.41"
target = "10.20.0.6"

[[nat.static]]
outside = "203.0.113.64/26"
inside = "10.8.64.0/26"
"#;

/// The same for nftables. The order is SoftGate's: destination NAT, filter, source NAT.
pub const RULESET: &str = r#"
table inet filter {
    chain input {
        # SoftGate takes neither for itself (no-host-path); a kernel would answer what NAT refuses.
        type filter hook input priority filter; policy accept;
        meta l4proto { tcp, udp } drop
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname "wan" ip saddr 192.0.2.64/26 drop
        iifname "lan" oifname "lan" accept
        iifname "dmz" oifname "dmz" accept
        iifname "wan" oifname "wan" accept
        iifname "lan" oifname "wan" tcp dport 25 drop
        iifname "lan" oifname "wan" udp dport 161 drop
        iifname "lan" oifname "wan" tcp dport 23 reject with tcp reset
        iifname "lan" oifname "wan" udp dport 69 meta nfproto ipv4 reject with icmp admin-prohibited
        iifname "lan" oifname "wan" udp dport 69 meta nfproto ipv6 reject with icmpv6 admin-prohibited
        iifname "lan" oifname "wan" accept
        iifname "dmz" oifname "wan" tcp dport 443 accept
        iifname "dmz" oifname "wan" udp dport { 53, 123 } accept
        iifname "dmz" oifname "wan" icmp type echo-request accept
        iifname "dmz" oifname "wan" icmpv6 type echo-request accept
        oifname "dmz" tcp dport { 80, 443, 9000 } accept
        oifname "dmz" udp dport { 53, 9000 } accept
        oifname "dmz" icmp type echo-request accept
        oifname "dmz" icmpv6 type echo-request accept
        iifname "wan" ip daddr 10.8.64.0/26 tcp dport 8000-8999 accept
        iifname "wan" ip daddr 10.8.64.0/26 udp dport 8000-8999 accept
        iifname "wan" ip daddr 10.8.64.0/26 icmp type echo-request accept
        iifname "wan" ip daddr 10.8.64.0/26 meta l4proto esp accept
        iifname "wan" ip saddr 192.0.2.160/27 oifname "lan" ip daddr 10.9.0.0/16 accept
    }
}
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 203.0.113.40 tcp dport 8080 dnat to 10.0.2.10:80
        ip daddr 203.0.113.40 udp dport 5353 dnat to 10.0.2.11:53
        ip daddr 203.0.113.40 tcp dport 443 dnat to 10.20.0.5
        ip daddr 203.0.113.41 dnat to 10.20.0.6
        ip daddr 203.0.113.64/26 dnat ip prefix to ip daddr map { 203.0.113.64/26 : 10.8.64.0/26 }
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip daddr 192.0.2.128/26 return
        oifname "wan" ip saddr 10.8.64.0/26 snat ip prefix to ip saddr map { 10.8.64.0/26 : 203.0.113.64/26 }
        iifname "lan" oifname "wan" snat to 203.0.113.0-203.0.113.15 persistent
        iifname "lan" oifname "lan" ct status dnat snat to 203.0.113.0-203.0.113.15 persistent
        iifname "dmz" oifname "wan" meta l4proto { tcp, udp } snat to 198.51.100.2:32768-60999
        iifname "dmz" oifname "wan" snat to 198.51.100.2
    }
}
"#;

/// The whole config of SoftGate.
pub fn config() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("schema = 1\n");
    for (link, zone) in ["inside", "servers", "outside"].into_iter().enumerate() {
        let (name, [v4, v6], mtu) = (LINKS[link], OWN[link], MTUS[link]);
        let mac = mac_text(gateway_mac(link));
        let _ = write!(
            text,
            "[[port]]\nname = \"{name}\"\ndevice = \"{name}\"\n[[interface]]\nname = \"{name}\"\nport = \"{name}\"\n\
             zone = \"{zone}\"\nmac = \"{mac}\"\nmtu = {mtu}\naddresses = [\"{v4}\", \"{v6}\"]\n"
        );
    }
    for (prefix, via) in ROUTES {
        let _ = writeln!(text, "[[route]]\nprefix = \"{prefix}\"\nvia = [\"{via}\"]");
    }
    let _ = writeln!(text, "[[route]]\nprefix = \"{BLACKHOLE}\"\nblackhole = true");
    for (link, addr) in neighbours() {
        let (name, mac) = (LINKS[link], mac_text(station_mac(addr)));
        let _ =
            writeln!(text, "[[neighbour]]\ninterface = \"{name}\"\naddress = \"{addr}\"\nmac = \"{mac}\"");
    }
    text + POLICY
}

pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What of a flow's translation a system may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// Nothing.
    None,
    /// An address of the pool, and a port of the class of the inside one (RFC 4787 REQ-3a).
    Pool,
    /// The port, from the range that the interface address has for NAT.
    Interface,
}

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Server,
    /// Someone outside, to where the server answers to.
    Stranger(End),
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum What {
    Udp {
        data: Vec<u8>,
        checksum: bool,
    },
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
        window: u16,
        options: Vec<u8>,
        data: Vec<u8>,
    },
    Echo {
        reply: bool,
        sequence: u16,
        data: Vec<u8>,
    },
    /// Of the flow's own protocol.
    Other {
        data: Vec<u8>,
    },
    /// An ICMP error about the packet that the sender's side got last, of which it quotes the IP header and so many
    /// bytes at most.
    Error {
        kind: u8,
        code: u8,
        rest: u32,
        quote: usize,
        router: Option<IpAddr>,
        twist: Twist,
    },
}

/// What an ICMP error does to what it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    /// Nothing.
    None,
    /// It was seen some hops later: its TTL is 1.
    Late,
    /// It is 128 bytes of the packet, or the packet and zeros, and an extension follows (RFC 4884 section 4.1).
    Extended,
    /// It is of no flow: its ports are others.
    Stray,
}

/// What becomes of a packet, as the configs say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passes,
    /// In silence.
    Lost,
    /// And its sender is told.
    Refused,
    /// Whatever both say of it.
    Alike,
    /// One system lets it pass, the other does not: an entry of the table of known differences.
    Differs(&'static str),
}

/// One packet.
#[derive(Clone, Debug)]
pub struct Step {
    pub from: From,
    pub what: What,
    pub header: Header,
    pub fate: Fate,
    /// Bytes of Ethernet padding.
    pub padding: usize,
    /// A wrong upper checksum, which no router minds.
    pub broken: bool,
    /// Fragments with so many bytes at most, in this order.
    pub cut: Option<(usize, Order)>,
    /// Its data tell what it is, in each of its fragments.
    pub tagged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Straight,
    Reverse,
    /// The first comes last.
    FirstLast,
}

/// A flow: who talks to whom, and what they say. Packets of a round are sent before any of the next.
#[derive(Clone, Debug)]
pub struct Flow {
    pub class: &'static str,
    pub protocol: u8,
    pub client: End,
    /// Whom the client talks to.
    pub asked: End,
    /// Who that is.
    pub server: End,
    pub choice: Choice,
    pub rounds: Vec<Vec<Step>>,
    /// Sent after all rounds: packets that are or become fragments.
    pub cut: Vec<Step>,
}

/// SplitMix64: the same flows on any machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `first` to `last`.
    pub fn within(&mut self, first: usize, last: usize) -> usize {
        first + (self.next() % (last - first + 1) as u64) as usize
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.within(0, all.len() - 1)]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.within(0, at));
        }
    }

    fn port(&mut self) -> u16 {
        // Ports that many hosts use at once, well-known ones too, and any.
        match self.within(0, 9) {
            0 => self.pick(&[53, 123, 500, 5060, 1023, 1024]),
            1 | 2 => self.within(40_000, 40_007) as u16,
            _ => self.within(1024, 65_535) as u16,
        }
    }
}

/// When something odd is said on a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Instead of the first SYN.
    First,
    /// Behind the SYN.
    Opening,
    /// Behind the SYN-ACK.
    Answered,
    /// Data have gone both ways.
    Open,
}

/// A segment that does not belong there: numbers are counted from those that would.
struct Odd(When, From, u8, i32, i32, usize, Option<&'static str>);

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const DATA: u8 = 0x18;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;
const RST_ACK: u8 = 0x14;

/// What becomes of the rest of the connection has to be the same as well, unless there is a known difference.
const ODD: [Odd; 43] = {
    use self::From::{Client, Server};
    use When::{Answered, First, Open, Opening};
    [
        Odd(First, Client, SYN, 0, 0, 100, None), // RFC 7413
        Odd(Opening, Client, ACK, 0, 0, 0, None),
        Odd(Opening, Client, DATA, 0, 0, 100, None),
        Odd(Opening, Server, SYN, 0, 0, 0, None), // simultaneous
        Odd(Opening, Server, SYN_ACK, 0, 4, 0, Some("half-open")),
        Odd(Opening, Server, RST, 0, 0, 0, Some("reset-without-ack")),
        Odd(Opening, Server, RST_ACK, 0, 76, 0, None),
        Odd(Opening, Server, DATA, 1, 0, 100, Some("data-before-syn-ack")),
        Odd(Opening, Server, ACK, 0, -500, 0, None), // a challenge
        Odd(Answered, Server, SYN_ACK, -1, 0, 0, None),
        Odd(Answered, Server, DATA, 0, 0, 100, None),
        Odd(Answered, Client, FIN, 0, 0, 0, None),
        Odd(Open, Client, SYN, 0, 0, 0, None),
        Odd(Open, Client, SYN, 100_000_000, 0, 0, None),
        Odd(Open, Client, SYN_ACK, 0, 0, 0, Some("syn-ack-of-the-client")),
        Odd(Open, Client, RST, 10, 0, 0, None),
        Odd(Open, Client, RST, 100_000, 0, 0, None),
        Odd(Open, Client, RST_ACK, -100, 0, 0, None),
        Odd(Open, Client, FIN, 1000, 0, 0, None),
        Odd(Open, Client, DATA, 5000, 0, 300, None),
        Odd(Open, Client, DATA, 19_990, 0, 300, None),
        Odd(Open, Client, ACK, 0, 5000, 0, None),
        Odd(Open, Client, ACK, 0, -300, 0, None),
        Odd(Open, Client, 0x00, 0, 0, 0, None),
        Odd(Open, Client, 0x03, 0, 0, 0, None),
        Odd(Open, Client, 0x29, 0, 0, 0, None),
        Odd(Open, Client, 0x28, 0, 0, 10, None),
        Odd(Open, Server, SYN, 0, 0, 0, Some("syn-of-the-server")),
        Odd(Open, Server, SYN, 100_000_000, 0, 0, Some("syn-of-the-server")),
        Odd(Open, Server, SYN_ACK, 0, 0, 0, None),
        Odd(Open, Server, RST, 10, 0, 0, None),
        Odd(Open, Server, RST, 100_000, 0, 0, None),
        Odd(Open, Server, RST_ACK, -100, 0, 0, None),
        Odd(Open, Server, FIN, 1000, 0, 0, None),
        Odd(Open, Server, DATA, 5000, 0, 300, None),
        Odd(Open, Server, DATA, 19_990, 0, 300, Some("overshoot")),
        Odd(Open, Server, ACK, 0, 5000, 0, None),
        Odd(Open, Server, ACK, 0, -300, 0, None),
        Odd(Open, Server, 0x00, 0, 0, 0, None),
        Odd(Open, Server, 0x03, 0, 0, 0, None),
        Odd(Open, Server, 0x29, 0, 0, 0, None),
        Odd(Open, Server, 0x28, 0, 0, 10, None),
        Odd(Open, Server, RST, 0, 0, 0, None),
    ]
};

/// A first packet whose upper header is cut short, says something wrong, or begins nothing: how it begins, and its
/// length. Ports, identifier and checksum are filled in where there is room.
#[derive(Clone, Copy)]
struct Malformed(u8, &'static [u8], usize, Option<&'static str>);

const MALFORMED: [Malformed; 30] = [
    Malformed(UDP, &[], 4, None),
    Malformed(UDP, &[0, 0, 0, 0, 0, 8], 6, None),
    Malformed(UDP, &[0, 0, 0, 0, 0, 200, 0, 0], 50, Some("udp-length")),
    Malformed(UDP, &[0, 0, 0, 0, 0, 4, 0, 0], 50, Some("udp-length")),
    Malformed(UDP, &[0, 0, 0, 0, 0, 0, 0, 0], 50, Some("udp-length")),
    Malformed(UDP, &[0, 0, 0, 0, 0, 20, 0, 0], 50, None),
    Malformed(UDP, &[0, 0, 0, 0, 0, 8, 0, 0], 8, None),
    Malformed(TCP, &[], 4, None),
    Malformed(TCP, &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0], 12, None),
    Malformed(TCP, &syn(4), 40, None),
    Malformed(TCP, &syn(15), 40, None),
    Malformed(TCP, &syn_with([8, 0, 0, 0]), 24, Some("malformed-options")),
    Malformed(TCP, &syn_with([1, 1, 8, 10]), 24, Some("malformed-options")),
    Malformed(TCP, &syn_with([3, 1, 0, 0]), 24, Some("malformed-options")),
    Malformed(TCP, &syn_with([0, 9, 9, 9]), 24, None),
    Malformed(TCP, &syn_with([3, 3, 15, 0]), 24, None),
    Malformed(TCP, &syn_with([254, 4, 1, 1]), 24, None),
    Malformed(ICMP, &[8, 0, 0, 0], 4, None),
    Malformed(ICMP, &[8, 1], 20, None),
    Malformed(ICMP, &[13, 0], 20, None),
    Malformed(ICMP, &[17, 0], 12, None),
    Malformed(ICMP, &[0, 0], 20, Some("reply-without-query")),
    Malformed(ICMP, &[14, 0], 20, Some("reply-without-query")),
    Malformed(ICMP, &[15, 0], 8, Some("information-request")),
    Malformed(ICMP, &[4, 0], 40, None),
    Malformed(ICMP, &[5, 0], 40, None),
    Malformed(ICMP, &[9, 0], 40, None),
    Malformed(ICMP, &[10, 0], 8, None),
    Malformed(ICMP, &[40, 0], 40, None),
    Malformed(ICMP, &[255, 0], 40, None),
];

/// A SYN that says its header is so many words long.
const fn syn(words: u8) -> [u8; 20] {
    [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, words << 4, SYN, 0x40, 0, 0, 0, 0, 0]
}

/// One with these options.
const fn syn_with(options: [u8; 4]) -> [u8; 24] {
    let (mut all, head) = ([0; 24], syn(6));
    let mut at = 0;
    while at < 24 {
        all[at] = if at < 20 { head[at] } else { options[at - 20] };
        at += 1;
    }
    all
}

/// Makes flows, no two of which share a tuple on either side.
pub struct Generator {
    pub random: Random,
    flows: Vec<Flow>,
    taken: HashSet<(u8, End, End)>,
    /// Entries of [`ODD`] that were drawn.
    odd: usize,
    /// And of [`MALFORMED`].
    malformed: usize,
}

/// Flows of each class in a hundred.
const SHARES: [(&str, usize); 21] = [
    ("out", 35),
    ("out-again", 12),
    ("servers-out", 6),
    ("forward", 8),
    ("forward-from-inside", 2),
    ("static-in", 4),
    ("static-out", 4),
    ("partner-out", 4),
    ("partner-in", 2),
    ("to-servers", 3),
    ("within", 1),
    ("ipv6", 5),
    ("ipv6-servers", 2),
    ("hairpin", 2),
    ("denied", 2),
    ("rejected", 1),
    ("nobody-there", 2),
    ("no-connection", 1),
    ("odd-tcp", 1),
    ("malformed", 1),
    ("other-protocol", 2),
];

const _: () = {
    let (mut at, mut sum) = (0, 0);
    while at < SHARES.len() {
        sum += SHARES[at].1;
        at += 1;
    }
    assert!(sum == 100, "shares are of a hundred");
};

impl Generator {
    /// So many flows in all classes.
    pub fn flows(seed: u64, count: usize) -> Vec<Flow> {
        let mut generator = Generator {
            random: Random::new(seed),
            flows: Vec::new(),
            taken: HashSet::new(),
            odd: 0,
            malformed: 0,
        };
        for (class, share) in SHARES {
            for _ in 0..count * share / 100 {
                generator.add(class);
            }
        }
        generator.random.shuffle(&mut generator.flows);
        generator.flows
    }

    fn inside(&mut self) -> IpAddr {
        match self.random.within(0, 3) {
            0 | 1 => v4_of(10, 0, 1, self.random.within(10, 129) as u8),
            2 => v4_of(10, 8, self.random.within(0, 1) as u8, self.random.within(1, 100) as u8),
            _ => v4_of(10, 9, 0, self.random.within(1, 100) as u8),
        }
    }

    fn outside(&mut self) -> IpAddr {
        match self.random.within(0, 3) {
            0 => v4_of(198, 51, 100, self.random.within(10, 59) as u8),
            1 => v4_of(192, 0, 2, self.random.within(1, 60) as u8),
            2 => v4_of(198, 51, 100, 10), // where many go
            _ => v4_of(100, 100, self.random.within(0, 255) as u8, self.random.within(1, 254) as u8),
        }
    }

    fn protocol(&mut self) -> u8 {
        self.random.pick(&[UDP, UDP, TCP, TCP, TCP, ICMP])
    }

    fn add(&mut self, class: &'static str) {
        for _ in 0..1000 {
            let flow = self.draw(class);
            let Flow { protocol, client, asked, server, .. } = flow;
            // An identifier stands for both ends.
            let with_id = |end: End| if protocol == ICMP { End { port: client.port, ..end } } else { end };
            let tuples = [
                (protocol, client, with_id(asked)),
                (protocol, with_id(asked), client),
                (protocol, client, with_id(server)),
                (protocol, with_id(server), client),
            ];
            if tuples.iter().any(|tuple| self.taken.contains(tuple)) {
                continue;
            }
            self.taken.extend(tuples);
            self.flows.push(flow);
            return;
        }
        panic!("no more flows of class {class}");
    }

    /// Ends of a flow of this class, and what they say.
    fn draw(&mut self, class: &'static str) -> Flow {
        let at = |addr: IpAddr, port: u16| End { addr, port };
        let port = self.random.port();
        let high = self.random.within(1024, 65_535) as u16;
        let service = self.random.pick(&[80, 443, 443, 53, 8443, high]);
        let (protocol, client, asked, server, choice) = match class {
            "out" => {
                let (protocol, to) = (self.protocol(), at(self.outside(), service));
                (protocol, at(self.inside(), port), to, to, Choice::Pool)
            }
            "out-again" => {
                // The same inside end talks to another outside.
                let first = self.random.within(0, self.flows.len() - 1);
                let Flow { protocol, client, choice, .. } = self.flows[first].clone();
                if choice != Choice::Pool {
                    return self.draw("out");
                }
                let to = at(self.outside(), if protocol == ICMP { 0 } else { service });
                (protocol, client, to, to, choice)
            }
            "servers-out" => {
                let protocol = self.protocol();
                let service = if protocol == TCP { 443 } else { self.random.pick(&[53, 123]) };
                let to = at(self.outside(), service);
                let host = v4_of(10, 0, 2, self.random.within(10, 29) as u8);
                (protocol, at(host, port), to, to, Choice::Interface)
            }
            "forward" | "forward-from-inside" => {
                let from = if class == "forward" { self.outside() } else { self.inside() };
                let vip = v4_of(203, 0, 113, 40);
                let (protocol, asked, server) = match self.random.within(0, 5) {
                    0 | 1 => (TCP, at(vip, 8080), at(v4_of(10, 0, 2, 10), 80)),
                    2 => (UDP, at(vip, 5353), at(v4_of(10, 0, 2, 11), 53)),
                    3 => (TCP, at(vip, 443), at(v4_of(10, 20, 0, 5), 443)),
                    4 => (ICMP, at(v4_of(203, 0, 113, 41), 0), at(v4_of(10, 20, 0, 6), 0)),
                    _ => {
                        let (protocol, port) = (self.random.pick(&[TCP, UDP]), 9000);
                        (protocol, at(v4_of(203, 0, 113, 41), port), at(v4_of(10, 20, 0, 6), port))
                    }
                };
                (protocol, at(from, high), asked, server, Choice::None)
            }
            "static-in" => {
                let (protocol, d) = (self.protocol(), self.random.within(0, 63) as u8);
                let port = self.random.within(8000, 8999) as u16;
                let (asked, server) = (at(v4_of(203, 0, 113, 64 + d), port), at(v4_of(10, 8, 64, d), port));
                (protocol, at(self.outside(), high), asked, server, Choice::None)
            }
            "static-out" => {
                let (protocol, d) = (self.protocol(), self.random.within(0, 63) as u8);
                let to = at(self.outside(), service);
                (protocol, at(v4_of(10, 8, 64, d), port), to, to, Choice::None)
            }
            "partner-out" => {
                let partner = v4_of(192, 0, 2, self.random.within(128, 191) as u8);
                let (protocol, to) = (self.protocol(), at(partner, service));
                (protocol, at(self.inside(), port), to, to, Choice::None)
            }
            "partner-in" => {
                let partner = v4_of(192, 0, 2, self.random.within(160, 191) as u8);
                let (protocol, to) = (
                    self.protocol(),
                    at(v4_of(10, 9, self.random.within(0, 3) as u8, self.random.within(1, 200) as u8), high),
                );
                (protocol, at(partner, port), to, to, Choice::None)
            }
            "to-servers" => {
                let protocol = self.protocol();
                let service = self.random.pick(if protocol == TCP { &[80, 443] } else { &[53, 9000] });
                let to = at(v4_of(10, 0, 2, self.random.within(12, 29) as u8), service);
                (protocol, at(self.inside(), port), to, to, Choice::None)
            }
            "within" => {
                let to = at(v4_of(10, 0, 1, self.random.within(10, 129) as u8), service);
                let from = v4_of(10, 9, 7, self.random.within(1, 254) as u8);
                (self.protocol(), at(from, port), to, to, Choice::None)
            }
            "ipv6" => {
                let protocol = [UDP, TCP, ICMPV6][self.random.within(0, 2)];
                let from = if self.random.percent(50) {
                    v6_of(1, self.random.within(0x10, 0x3f) as u16)
                } else {
                    v6_of(8, self.random.within(1, 0xffff) as u16)
                };
                let to = if self.random.percent(50) {
                    v6_of(0xff, self.random.within(0x10, 0x2f) as u16)
                } else {
                    v6_of(0xaa, self.random.within(1, 0xffff) as u16)
                };
                (protocol, at(from, port), at(to, service), at(to, service), Choice::None)
            }
            "ipv6-servers" => {
                let protocol = [UDP, TCP, ICMPV6][self.random.within(0, 2)];
                let service = if protocol == TCP { 443 } else { 9000 };
                let to = at(v6_of(2, self.random.within(0x10, 0x1f) as u16), service);
                (protocol, at(v6_of(8, self.random.within(1, 0xffff) as u16), port), to, to, Choice::None)
            }
            "hairpin" => {
                // By the outside address of a host in the same zone.
                let (protocol, d) = (self.protocol(), self.random.within(0, 63) as u8);
                let (asked, server) =
                    (at(v4_of(203, 0, 113, 64 + d), service), at(v4_of(10, 8, 64, d), service));
                (protocol, at(self.inside(), port), asked, server, Choice::Pool)
            }
            "denied" => {
                let outside = self.outside();
                let (protocol, client, asked) = match self.random.within(0, 4) {
                    0 => (TCP, at(self.inside(), port), at(outside, 25)),
                    1 => (UDP, at(self.inside(), port), at(outside, 161)),
                    2 => {
                        // Known to be bad, and to a published server.
                        let from = v4_of(192, 0, 2, self.random.within(64, 127) as u8);
                        (TCP, at(from, high), at(v4_of(203, 0, 113, 40), 8080))
                    }
                    3 => {
                        // A static address, at a port that is not open.
                        let d = self.random.within(64, 127) as u8;
                        let protocol = self.random.pick(&[TCP, UDP]);
                        (protocol, at(outside, port), at(v4_of(203, 0, 113, d), 7000))
                    }
                    _ => {
                        // No rule.
                        let host = v4_of(10, 0, 2, self.random.within(10, 29) as u8);
                        (self.random.pick(&[TCP, UDP]), at(host, port), at(outside, 4444))
                    }
                };
                (protocol, client, asked, asked, Choice::None)
            }
            "rejected" => {
                let to = self.random.pick(&[(TCP, 23), (UDP, 69)]);
                let asked = at(self.outside(), to.1);
                (to.0, at(self.inside(), port), asked, asked, Choice::None)
            }
            "nobody-there" => {
                let d = self.random.pick(&[0, 3, 15, 16, 39, 40, 200]);
                let asked = at(v4_of(203, 0, 113, d), self.random.within(1, 5000) as u16);
                (self.protocol(), at(self.outside(), high), asked, asked, Choice::None)
            }
            "malformed" => {
                let protocol = MALFORMED[self.malformed % MALFORMED.len()].0;
                let to = at(self.outside(), service);
                (protocol, at(self.inside(), port), to, to, Choice::Pool)
            }
            "no-connection" | "odd-tcp" => {
                let to = at(self.outside(), service);
                (TCP, at(self.inside(), port), to, to, Choice::Pool)
            }
            "other-protocol" => {
                let inbound = self.random.percent(33);
                let protocol = if inbound { 50 } else { self.random.pick(&[50, 47, 89, 4, 99]) };
                let (d, outside) = (self.random.within(0, 63) as u8, self.outside());
                let (client, asked, server, choice) = match if inbound { 0 } else { self.random.within(1, 2) }
                {
                    0 => (outside, v4_of(203, 0, 113, 64 + d), v4_of(10, 8, 64, d), Choice::None),
                    1 => (v4_of(10, 8, 64, d), outside, outside, Choice::None),
                    _ => {
                        let partner = v4_of(192, 0, 2, self.random.within(128, 191) as u8);
                        (self.inside(), partner, partner, Choice::None)
                    }
                };
                (protocol, at(client, 0), at(asked, 0), at(server, 0), choice)
            }
            _ => unreachable!("a class of SHARES"),
        };
        let flat =
            |end: End| End { port: if protocol == ICMP || protocol == ICMPV6 { 0 } else { end.port }, ..end };
        let (asked, server) = (flat(asked), flat(server));
        let mut flow =
            Flow { class, protocol, client, asked, server, choice, rounds: Vec::new(), cut: Vec::new() };
        self.talk(&mut flow);
        flow
    }

    fn header(&mut self) -> Header {
        // DSCP and ECN are any; a TTL of 2 is the last that passes.
        let tos = if self.random.percent(50) { 0 } else { self.random.next() as u8 };
        let ttl = self.random.pick(&[64, 128, 255, 2, self.random_ttl()]);
        let options = match self.random.within(0, 39) {
            0 => vec![1, 1, 1, 0],
            1 => vec![0x94, 4, 0, 0],
            _ => Vec::new(),
        };
        Header { ttl, tos, df: self.random.percent(50), options }
    }

    fn random_ttl(&self) -> u8 {
        2 + (self.random.0 >> 40) as u8 % 253
    }

    fn step(&mut self, from: From, what: What) -> Step {
        let padding = if self.random.percent(10) { self.random.within(1, 18) } else { 0 };
        let broken = !matches!(what, What::Error { .. } | What::Udp { checksum: false, .. });
        let broken = broken && self.random.percent(1);
        Step {
            from,
            what,
            header: self.header(),
            fate: Fate::Passes,
            padding,
            broken,
            cut: None,
            tagged: false,
        }
    }

    fn len(&mut self) -> usize {
        match self.random.within(0, 9) {
            0 => 0,
            1..=6 => self.random.within(1, 300),
            _ => self.random.within(300, 1300),
        }
    }

    /// A plain packet of the flow's protocol; TCP has its own.
    fn say(&mut self, flow: &Flow, from: From, reply: bool, sequence: u16) -> Step {
        let len = self.len();
        let data = self.random.bytes(len);
        let what = match flow.protocol {
            ICMP | ICMPV6 => What::Echo { reply, sequence, data },
            UDP => What::Udp { data, checksum: flow.client.addr.is_ipv6() || !self.random.percent(5) },
            TCP => {
                What::Tcp { flags: 0x02, seq: 7, ack: 0, window: 1000, options: Vec::new(), data: Vec::new() }
            }
            _ => What::Other { data: [vec![0; 8], data].concat() },
        };
        self.step(from, what)
    }

    fn talk(&mut self, flow: &mut Flow) {
        match flow.class {
            "denied" | "nobody-there" | "rejected" => {
                let told = flow.class == "rejected";
                for _ in 0..2 {
                    let mut step = self.say(flow, From::Client, false, 1);
                    if flow.protocol == TCP {
                        step = self.tcp(From::Client, 0x02, 1000, 0, 0);
                    }
                    step.broken = false;
                    step.fate = if told { Fate::Refused } else { Fate::Lost };
                    flow.rounds.push(vec![step]);
                }
            }
            "no-connection" => {
                let flags = self.random.pick(&[0x10, 0x18, 0x12, 0x11, 0x04, 0x14, 0x00, 0x03, 0x29]);
                let mut step = self.tcp(From::Client, flags, 1000, 2000, 0);
                step.fate = Fate::Lost;
                flow.rounds.push(vec![step]);
            }
            "malformed" => {
                let Malformed(_, head, len, differs) = MALFORMED[self.malformed % MALFORMED.len()];
                self.malformed += 1;
                let mut data = head.to_vec();
                data.resize(len, 0x55);
                let mut step = self.step(From::Client, What::Other { data });
                // Behind an ICMP header cut short SoftGate reads the identifier from Ethernet padding. Nobody takes
                // such a message, with or without.
                (step.broken, step.padding) = (false, 0);
                step.fate = differs.map_or(Fate::Alike, Fate::Differs);
                flow.rounds.push(vec![step]);
            }
            "odd-tcp" => self.odd(flow),
            _ if flow.protocol == TCP => self.connection(flow),
            _ => self.exchange(flow),
        }
    }

    /// UDP, echo and others: to and fro.
    fn exchange(&mut self, flow: &mut Flow) {
        if self.random.percent(5) {
            // A traceroute's first packet.
            let mut step = self.say(flow, From::Client, false, 0);
            step.header.ttl = 1;
            step.fate = Fate::Refused;
            flow.rounds.push(vec![step]);
        }
        let turns = self.random.within(1, 3) as u16;
        for turn in 0..turns {
            let several = self.random.within(1, 2) as u16;
            let number = |index| turn * 2 + index;
            let ask = (0..several).map(|i| self.say(flow, From::Client, false, number(i))).collect();
            flow.rounds.push(ask);
            if turn == 0 && self.random.percent(10) {
                return; // nobody answers
            }
            let answer = (0..several).map(|i| self.say(flow, From::Server, true, number(i))).collect();
            flow.rounds.push(answer);
        }
        if self.random.percent(5) {
            let from = self.random.pick(&[From::Client, From::Server]);
            let mut step = self.say(flow, from, from == From::Server, turns * 2);
            // A lost reply to a lost request is no reply.
            if flow.protocol == UDP {
                step.header.ttl = 1;
                step.fate = Fate::Refused;
                flow.rounds.push(vec![step]);
            }
        }
        if self.random.percent(15) {
            let step = self.error(flow, From::Server);
            flow.rounds.push(vec![step]);
        }
        // An error about a reply to a query is none about a query (RFC 5508 REQ-4).
        if self.random.percent(15) && flow.protocol == UDP {
            let step = self.error(flow, From::Client);
            flow.rounds.push(vec![step]);
        }
        if flow.choice == Choice::Pool && flow.protocol == UDP && self.random.percent(10) {
            let who = if self.random.percent(50) {
                End { port: flow.server.port ^ 0x4000, ..flow.server }
            } else {
                End { addr: v4_of(192, 0, 2, 61), ..flow.server }
            };
            let mut step = self.say(flow, From::Stranger(who), true, 0);
            step.fate = if who.addr == flow.server.addr {
                Fate::Differs("address-dependent-filtering")
            } else {
                Fate::Lost
            };
            flow.rounds.push(vec![step]);
        }
        if matches!(flow.protocol, UDP | ICMP | ICMPV6) && self.random.percent(10) {
            let from = self.random.pick(&[From::Client, From::Server]);
            let step = self.fragments(flow, from);
            flow.cut.push(step);
        }
        let narrow = [(From::Client, flow.server.addr), (From::Server, flow.client.addr)];
        for (from, to) in narrow {
            if place(to).0 == DMZ && matches!(flow.protocol, UDP | ICMP | ICMPV6) && self.random.percent(30) {
                let step = self.too_large(flow, from);
                flow.cut.push(step);
            }
        }
    }

    /// A datagram that comes in fragments.
    fn fragments(&mut self, flow: &Flow, from: From) -> Step {
        let cut = self.random.pick(&[552, 1000, 1280]);
        let mut len = self.random.within(600, 3500);
        while (len + 8) % cut < 16 {
            len += 1; // each piece tells whose it is
        }
        let order = self.random.pick(&[Order::Straight, Order::Straight, Order::Reverse, Order::FirstLast]);
        let mut step = self.tagged(flow, from, len);
        step.header.df = false;
        step.cut = Some((cut, order));
        step
    }

    /// One that is larger than the MTU of the servers' link: it is cut, or its sender is told if it may not be.
    fn too_large(&mut self, flow: &Flow, from: From) -> Step {
        let v6 = flow.client.addr.is_ipv6();
        let headers = if v6 { 48 } else { 28 };
        let len = self.random.within(MTUS[DMZ] + 16, MTUS[WAN]) - headers;
        let mut step = self.tagged(flow, from, len);
        step.header.options.clear();
        if v6 || step.header.df {
            step.fate = Fate::Refused;
        }
        step
    }

    fn tagged(&mut self, flow: &Flow, from: From, len: usize) -> Step {
        let mut step = self.say(flow, from, from == From::Server, 0x7000);
        (step.broken, step.padding, step.tagged) = (false, 0, true);
        match &mut step.what {
            What::Udp { data, .. } | What::Echo { data, .. } => *data = vec![0; len],
            What::Tcp { .. } | What::Other { .. } | What::Error { .. } => unreachable!("neither of those"),
        }
        step
    }

    fn error(&mut self, flow: &Flow, from: From) -> Step {
        let v6 = flow.client.addr.is_ipv6();
        let own = match from {
            From::Client => flow.client.addr,
            From::Server | From::Stranger(_) => flow.server.addr,
        };
        let router = match place(own) {
            _ if self.random.percent(50) => None,
            (_, via) if via == own => None,
            (_, via) => Some(via),
        };
        let (kind, code, rest) = if v6 {
            self.random.pick(&[(1, 4, 0), (1, 3, 0), (2, 0, 1280), (3, 0, 0), (4, 1, 6)])
        } else {
            self.random.pick(&[
                (3, 3, 0),
                (3, 1, 0),
                (3, 13, 0),
                (3, 4, 1300),
                (11, 0, 0),
                (11, 1, 0),
                (12, 0, 0x0900_0000),
            ])
        };
        let quote = if v6 { 1200 } else { self.random.pick(&[8, 16, 108, 528]) };
        let twist = match self.random.within(0, 7) {
            0 if matches!(flow.protocol, UDP | TCP | ICMP | ICMPV6) => Twist::Stray, // ESP has no ports
            1 | 2 if !v6 => Twist::Late,
            3 if matches!(kind, 3 | 11 | 12) && !v6 => Twist::Extended,
            _ => Twist::None,
        };
        let mut step = self.step(from, What::Error { kind, code, rest, quote, router, twist });
        if twist == Twist::Stray {
            step.fate = Fate::Lost;
        }
        step
    }

    fn tcp(&mut self, from: From, flags: u8, seq: u32, ack: u32, len: usize) -> Step {
        let data = self.random.bytes(len);
        let window = self.random.within(20_000, 65_535) as u16;
        self.step(from, What::Tcp { flags, seq, ack, window, options: Vec::new(), data })
    }

    /// A connection of which one segment is odd, and what becomes of the rest.
    fn odd(&mut self, flow: &mut Flow) {
        let Odd(when, from, flags, seq, ack, len, differs) = ODD[self.odd % ODD.len()];
        self.odd += 1;
        // Numbers of the next segment of client and server.
        let (mut c, mut s) = (self.random.next() as u32, self.random.next() as u32);
        let story = [
            (When::First, From::Client, SYN, 0),
            (When::Opening, From::Server, SYN_ACK, 0),
            (When::Answered, From::Client, ACK, 0),
            (When::Answered, From::Client, DATA, 500),
            (When::Answered, From::Server, DATA, 700),
            (When::Open, From::Client, DATA, 500),
            (When::Open, From::Server, DATA, 700),
            (When::Open, From::Client, ACK, 0),
        ];
        let mut fate = Fate::Passes;
        for (now, sender, usual, bytes) in story {
            if now == when && fate == Fate::Passes {
                let (own, other) = if from == From::Client { (c, s) } else { (s, c) };
                let (seq, ack) = (own.wrapping_add_signed(seq), other.wrapping_add_signed(ack));
                let mut step = self.tcp(from, flags, seq, ack, len);
                plain(&mut step);
                step.fate = differs.map_or(Fate::Alike, Fate::Differs);
                flow.rounds.push(vec![step]);
                if differs.is_some() {
                    return;
                }
                fate = Fate::Alike;
                if when == When::First {
                    c = c.wrapping_add(1);
                    continue;
                }
            }
            let (own, other) = if sender == From::Client { (&mut c, s) } else { (&mut s, c) };
            let mut step = self.tcp(sender, usual, *own, if usual == SYN { 0 } else { other }, bytes);
            plain(&mut step);
            step.fate = fate;
            *own = own.wrapping_add(bytes as u32 + u32::from(usual & SYN != 0));
            flow.rounds.push(vec![step]);
        }
    }

    /// A TCP connection, all in the windows; sometimes refused, reset, or with segments that cannot belong to it.
    fn connection(&mut self, flow: &mut Flow) {
        let random = |generator: &mut Generator| match generator.random.within(0, 3) {
            0 => 0xffff_ff00 + generator.random.within(0, 255) as u32,
            _ => generator.random.next() as u32,
        };
        let (mut c, mut s) = (random(self), random(self));
        let stamps = self.random.percent(50);
        let scale = self.random.within(0, 9) as u8;
        let mut clock = 1u32;
        let mut options = |syn: bool, scaled: bool| {
            clock += 1;
            let mut all = Vec::new();
            if syn {
                all.extend([2, 4, 5, 0xb4, 4, 2]);
            } else if stamps {
                all.extend([1, 1]);
            }
            if stamps {
                all.extend([8, 10]);
                all.extend(clock.to_be_bytes());
                all.extend((clock - 1).to_be_bytes());
            } else if syn {
                all.extend([1, 1]);
            }
            if syn && scaled {
                all.extend([1, 3, 3, scale]);
            }
            all
        };
        let scaled = self.random.percent(70);
        let with = |mut step: Step, said: Vec<u8>| {
            if let What::Tcp { options, .. } = &mut step.what {
                *options = said;
            }
            step
        };
        let ecn = if self.random.percent(10) { 0xc0 } else { 0 };
        let syn = with(self.tcp(From::Client, 0x02 | ecn, c, 0, 0), options(true, scaled));
        let again = self.random.percent(5).then(|| syn.clone());
        flow.rounds.push([Some(syn), again].into_iter().flatten().collect());
        c = c.wrapping_add(1);
        if self.random.percent(5) {
            // Nobody listens.
            let step = self.tcp(From::Server, 0x14, 0, c, 0);
            flow.rounds.push(vec![step]);
            return;
        }
        if self.random.percent(3) {
            let step = self.error(flow, From::Server);
            flow.rounds.push(vec![step]);
            return;
        }
        let answer = with(self.tcp(From::Server, 0x12 | (ecn & 0x40), s, c, 0), options(true, scaled));
        flow.rounds.push(vec![answer]);
        s = s.wrapping_add(1);
        let ack = with(self.tcp(From::Client, 0x10, c, s, 0), options(false, false));
        let len = self.random.within(1, 1200);
        let data = with(self.tcp(From::Client, 0x18, c, s, len), options(false, false));
        if self.random.percent(3) {
            // The data get no further than the gateway, and come again.
            let mut lost = data.clone();
            lost.header.ttl = 1;
            lost.fate = Fate::Refused;
            flow.rounds.push(vec![ack, lost]);
            flow.rounds.push(vec![data]);
        } else {
            flow.rounds.push(vec![ack, data]);
        }
        c = c.wrapping_add(len as u32);
        let mut down = Vec::new();
        for _ in 0..self.random.within(1, 3) {
            let len = self.random.within(1, 1300);
            down.push(with(self.tcp(From::Server, 0x18, s, c, len), options(false, false)));
            s = s.wrapping_add(len as u32);
        }
        if self.random.percent(10) {
            down.push(down[0].clone()); // sent again
        }
        flow.rounds.push(down);
        if self.random.percent(10) {
            let from = self.random.pick(&[From::Client, From::Server]);
            let step = self.error(flow, from);
            flow.rounds.push(vec![step]);
        }
        if self.random.percent(5) {
            // Far outside the window: ahead of it, or long ago.
            let far = self.random.pick(&[0x2000_0000, 0x6000_0000, 0xd000_0000u32]);
            let flags = self.random.pick(&[0x18, 0x10, 0x11]);
            let (from, seq, acked) = self.random.pick(&[(From::Client, c, s), (From::Server, s, c)]);
            let len = self.random.within(1, 100);
            let mut step =
                with(self.tcp(from, flags, seq.wrapping_add(far), acked, len), options(false, false));
            step.fate = if far < 1 << 31 { Fate::Lost } else { Fate::Differs("segments-of-long-ago") };
            flow.rounds.push(vec![step]);
        }
        if self.random.percent(20) {
            let (from, seq, acked) = self.random.pick(&[(From::Client, c, s), (From::Server, s, c)]);
            let step = self.tcp(from, 0x14, seq, acked, 0);
            flow.rounds.push(vec![step]);
            return;
        }
        if self.random.percent(10) {
            return; // goes on for ever
        }
        let (first, second) = self.random.pick(&[(From::Client, From::Server), (From::Server, From::Client)]);
        let (mut a, mut b) = if first == From::Client { (c, s) } else { (s, c) };
        flow.rounds.push(vec![with(self.tcp(first, 0x11, a, b, 0), options(false, false))]);
        a = a.wrapping_add(1);
        if self.random.percent(30) {
            // Half closed: data and its acknowledgment.
            let len = self.random.within(1, 1000);
            flow.rounds.push(vec![with(self.tcp(second, 0x18, b, a, len), options(false, false))]);
            b = b.wrapping_add(len as u32);
            flow.rounds.push(vec![with(self.tcp(first, 0x10, a, b, 0), options(false, false))]);
        }
        flow.rounds.push(vec![with(self.tcp(second, 0x11, b, a, 0), options(false, false))]);
        b = b.wrapping_add(1);
        flow.rounds.push(vec![with(self.tcp(first, 0x10, a, b, 0), options(false, false))]);
    }
}

/// A segment with nothing special but its flags and numbers, and a window that all know.
fn plain(step: &mut Step) {
    step.broken = false;
    if let What::Tcp { window, .. } = &mut step.what {
        *window = 20_000;
    }
}
