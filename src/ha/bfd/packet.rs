//! Control packets (RFC 5880 section 4.1) as they go over one hop (RFC 5881 section 4): the IP packet from its first byte
//! on, read and written.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ha::one_hop::{self, Closed};
use crate::packet::checksum;
use crate::packet::view::{be16, be32, protocol};

/// RFC 5881 section 4.
pub const UDP_PORT: u16 = 3784;
const VERSION: u8 = 1;
/// Mandatory section (RFC 5880 section 4.1).
const CONTROL_BYTES: usize = 24;
/// With the first two bytes of an authentication section.
const AUTHENTICATED_BYTES: usize = 26;
const UDP_BYTES: usize = 8;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// A time as control packets carry it: whole microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u32);

impl Micros {
    /// The time.
    pub fn duration(self) -> Duration {
        Duration::from_micros(self.0.into())
    }
}

/// State of a session (RFC 5880 section 4.1), with its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "BfdState")]
#[repr(u8)]
pub enum State {
    /// Held down by the operator.
    AdminDown = 0,
    /// Nothing is heard, or the other end does not hear us.
    Down = 1,
    /// The other end is heard.
    Init = 2,
    /// Both hear each other.
    Up = 3,
}

impl State {
    /// All of them, by number.
    pub const ALL: [State; 4] = [State::AdminDown, State::Down, State::Init, State::Up];

    /// In a word, for people.
    pub fn name(self) -> &'static str {
        match self {
            State::AdminDown => "admin-down",
            State::Down => "down",
            State::Init => "init",
            State::Up => "up",
        }
    }
}

/// Why a session left Up last (RFC 5880 section 4.1): a number of 5 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diagnostic(u8);

impl Diagnostic {
    /// It never has.
    pub const NONE: Diagnostic = Diagnostic(0);
    /// Nothing was heard for the detection time.
    pub const EXPIRED: Diagnostic = Diagnostic(1);
    /// The other end said that it is down.
    pub const NEIGHBOUR_DOWN: Diagnostic = Diagnostic(3);
    /// The link is down.
    pub const PATH_DOWN: Diagnostic = Diagnostic(5);
    /// The operator has ended it.
    pub const ADMIN_DOWN: Diagnostic = Diagnostic(7);

    /// For people.
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "none",
            1 => "detection-time-expired",
            2 => "echo-failed",
            3 => "neighbour-signalled-down",
            4 => "forwarding-plane-reset",
            5 => "path-down",
            6 => "concatenated-path-down",
            7 => "admin-down",
            8 => "reverse-concatenated-path-down",
            _ => "reserved",
        }
    }
}

/// What a control packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Why the sender's session left Up last.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for an answer.
    pub poll: bool,
    /// It is the answer.
    pub is_final: bool,
    /// It carries an authentication section, which is not read.
    pub is_authenticated: bool,
    /// The sender wants no periodic packets while both are up.
    pub demand: bool,
    /// How many packets may be missing.
    pub detect_mult: u8,
    /// The sender's number of the session.
    pub my_discriminator: NonZeroU32,
    /// The receiver's, as far as the sender has heard it; else 0.
    pub your_discriminator: u32,
    /// How often the sender would like to send at most.
    pub desired_min_tx: Micros,
    /// How often it can receive at most; 0: it wants no periodic packets.
    pub required_min_rx: Micros,
}

/// A control packet with who sent it to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Source.
    pub src_addr: IpAddr,
    /// Destination, of the same family.
    pub dst_addr: IpAddr,
    /// 49152 to 65535, the same for all packets of a session (RFC 5881 section 4).
    pub src_port: u16,
    /// What it says.
    pub control: Control,
}

/// What is wrong with a control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BadControl {
    /// No whole IP packet, datagram or control packet.
    Truncated,
    /// TTL or hop limit is not 255.
    Ttl,
    /// The UDP checksum is wrong.
    Checksum,
    /// Another version of BFD.
    Version,
    /// Its length is less than its parts, or more than the datagram has.
    Length,
    /// A detection multiplier of 0.
    DetectMult,
    /// The multipoint bit is set.
    Multipoint,
    /// The sender's discriminator is 0.
    MyDiscriminator,
    /// The receiver's discriminator is none of ours, or of a session with somebody else.
    YourDiscriminator,
    /// The sender knows no discriminator of ours, and is neither Down nor AdminDown.
    NotDown,
    /// No session with the sender is configured there.
    UnknownPeer,
    /// It is authenticated, and the session is not.
    Authenticated,
}

impl BadControl {
    /// All of them, in their order.
    pub const ALL: [BadControl; 12] = [
        BadControl::Truncated,
        BadControl::Ttl,
        BadControl::Checksum,
        BadControl::Version,
        BadControl::Length,
        BadControl::DetectMult,
        BadControl::Multipoint,
        BadControl::MyDiscriminator,
        BadControl::YourDiscriminator,
        BadControl::NotDown,
        BadControl::UnknownPeer,
        BadControl::Authenticated,
    ];

    /// Name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            BadControl::Truncated => "truncated",
            BadControl::Ttl => "ttl",
            BadControl::Checksum => "checksum",
            BadControl::Version => "version",
            BadControl::Length => "length",
            BadControl::DetectMult => "detect-mult",
            BadControl::Multipoint => "multipoint",
            BadControl::MyDiscriminator => "my-discriminator",
            BadControl::YourDiscriminator => "your-discriminator",
            BadControl::NotDown => "not-down",
            BadControl::UnknownPeer => "unknown-peer",
            BadControl::Authenticated => "authenticated",
        }
    }
}

impl Datagram {
    /// Reads the IPv4 or IPv6 packet that begins at `l3`; what is behind it does not count. RFC 5880 section 6.8.6 as far
    /// as no session is needed for it, in its order.
    pub fn parse(l3: &[u8]) -> Result<Datagram, BadControl> {
        let opened = one_hop::open(l3, protocol::UDP)?;
        let (src_addr, dst_addr, udp) = (opened.src, opened.dst, opened.message);
        let header = udp.first_chunk::<UDP_BYTES>().ok_or(BadControl::Truncated)?;
        let (src_port, len) = (be16(header, 0), usize::from(be16(header, 4)));
        let udp = udp.get(..len).filter(|udp| udp.len() >= UDP_BYTES).ok_or(BadControl::Truncated)?;
        if be16(header, 2) != UDP_PORT {
            return Err(BadControl::Truncated);
        }
        // Over IPv4 there need not be a checksum (RFC 768); over IPv6 there has to be one (RFC 8200 section 8.1).
        let has_none = be16(header, 6) == 0 && src_addr.is_ipv4();
        if !has_none && checksum::fold(checksum::add(pseudo(src_addr, dst_addr, udp.len()), udp)) != 0xffff {
            return Err(BadControl::Checksum);
        }
        Ok(Datagram { src_addr, dst_addr, src_port, control: Control::parse(&udp[UDP_BYTES..])? })
    }

    /// The IP packet.
    pub fn emit(&self) -> Vec<u8> {
        let len = UDP_BYTES + CONTROL_BYTES;
        let mut packet = one_hop::header(self.src_addr, self.dst_addr, protocol::UDP, len);
        let l4 = packet.len();
        packet.extend_from_slice(&self.src_port.to_be_bytes());
        packet.extend_from_slice(&UDP_PORT.to_be_bytes());
        packet.extend_from_slice(&(len as u16).to_be_bytes());
        packet.extend_from_slice(&[0; 2]);
        self.control.emit(&mut packet);
        let sum = checksum::add(pseudo(self.src_addr, self.dst_addr, len), &packet[l4..]);
        // RFC 768: a sum of 0 is sent as all ones.
        let sum = Some(!checksum::fold(sum)).filter(|sum| *sum != 0).unwrap_or(0xffff);
        packet[l4 + 6..l4 + 8].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

impl Control {
    fn parse(payload: &[u8]) -> Result<Control, BadControl> {
        let bytes = payload.first_chunk::<CONTROL_BYTES>().ok_or(BadControl::Truncated)?;
        if bytes[0] >> 5 != VERSION {
            return Err(BadControl::Version);
        }
        let flags = bytes[1];
        let is_authenticated = flags & AUTHENTICATION != 0;
        let least = if is_authenticated { AUTHENTICATED_BYTES } else { CONTROL_BYTES };
        if !(least..=payload.len()).contains(&usize::from(bytes[3])) {
            return Err(BadControl::Length);
        }
        if bytes[2] == 0 {
            return Err(BadControl::DetectMult);
        }
        if flags & MULTIPOINT != 0 {
            return Err(BadControl::Multipoint);
        }
        let my_discriminator = NonZeroU32::new(be32(bytes, 4)).ok_or(BadControl::MyDiscriminator)?;
        Ok(Control {
            diagnostic: Diagnostic(bytes[0] & 0x1f),
            state: State::ALL[usize::from(flags >> 6)],
            poll: flags & POLL != 0,
            is_final: flags & FINAL != 0,
            is_authenticated,
            demand: flags & DEMAND != 0,
            detect_mult: bytes[2],
            my_discriminator,
            your_discriminator: be32(bytes, 8),
            desired_min_tx: Micros(be32(bytes, 12)),
            required_min_rx: Micros(be32(bytes, 16)),
        })
    }

    /// Without authentication, and with a Required Min Echo RX Interval of 0: echoes are not supported.
    fn emit(&self, packet: &mut Vec<u8>) {
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        packet.extend_from_slice(&[
            VERSION << 5 | self.diagnostic.0,
            (self.state as u8) << 6
                | flag(self.poll, POLL)
                | flag(self.is_final, FINAL)
                | flag(self.demand, DEMAND),
            self.detect_mult,
            CONTROL_BYTES as u8,
        ]);
        let words = [
            self.my_discriminator.get(),
            self.your_discriminator,
            self.desired_min_tx.0,
            self.required_min_rx.0,
            0,
        ];
        packet.extend(words.into_iter().flat_map(u32::to_be_bytes));
    }
}

fn pseudo(src: IpAddr, dst: IpAddr, len: usize) -> u64 {
    one_hop::pseudo(src, dst, protocol::UDP, len)
}

impl From<Closed> for BadControl {
    fn from(closed: Closed) -> BadControl {
        match closed {
            Closed::Truncated => BadControl::Truncated,
            Closed::Ttl => BadControl::Ttl,
        }
    }
}
