//! A packet in words: `tcp 10.0.1.5:40000 > 198.51.100.7:443 from lan`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::service::{Dscp, Service, TcpFlag};
use super::value::{InterfaceName, Mac, Name, NotAllowed, from_text};
use crate::packet::view::protocol;

/// The first packet of a flow, as people write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketText {
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source address.
    pub src: IpAddr,
    /// Source port, or the identifier of an ICMP query; 0 of what has neither.
    pub src_port: u16,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Destination port; 0 of what has none.
    pub dst_port: u16,
    /// ICMP type; of other protocols 0.
    pub icmp_type: u8,
    /// Where it comes in, an interface or a bridge's member; absent: where the route to its source says.
    pub interface: Option<InterfaceName>,
    /// From a bridge's member: the member that its station is behind, or the bridge's interface, where the gateway is
    /// meant; absent: as its destination address, or MAC address, says.
    pub to: Option<InterfaceName>,
    /// MAC address of its sender; absent: one that is nobody's.
    pub src_mac: Option<Mac>,
    /// From a bridge's member: MAC address it is sent to.
    pub dst_mac: Option<Mac>,
    /// DSCP.
    pub dscp: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes of the IP packet; absent: as many as its headers have.
    pub len_bytes: Option<u16>,
}

impl PacketText {
    const ALLOWED: &str = "write PROTOCOL SOURCE > DESTINATION [from INTERFACE] [flags syn,ack] [dscp ef] [ttl 64] \
                           [length 1400], and of bridges [from BRIDGE/MEMBER] [to BRIDGE/MEMBER] [src-mac MAC] \
                           [dst-mac MAC]: \"tcp 10.0.1.5:40000 > 198.51.100.7:443 from lan\", \
                           \"icmpv6/echo-request 2001:db8::1 > 2001:db8:1::1\"";
    /// What a packet comes from that names no port: the first that IANA gives to nobody (RFC 6335 section 6).
    pub(crate) const ANY_PORT: u16 = 49_152;
    /// TTL of a packet that names none: as Linux gives its own.
    pub(crate) const TTL: u8 = 64;
    /// Longest packet.
    const MAX_BYTES: u16 = 9000;

    /// True if it has ports.
    pub fn has_ports(&self) -> bool {
        Service::of_protocol(self.protocol).has_ports()
    }
}

fn endpoint(text: &str) -> Result<(IpAddr, Option<u16>), NotAllowed> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(addr) = bare.parse::<IpAddr>() {
        return Ok((addr, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(addr) => Ok((addr.ip(), Some(addr.port()))),
        Err(_) => Err(NotAllowed::because(format!(
            "{text:?} is no address, ADDRESS:PORT or [IPV6]:PORT; {}",
            PacketText::ALLOWED
        ))),
    }
}

impl FromStr for PacketText {
    type Err = NotAllowed;

    fn from_str(text: &str) -> Result<PacketText, NotAllowed> {
        let mut words = text.split_whitespace();
        let mut next = || words.next().ok_or(NotAllowed::new(PacketText::ALLOWED));
        let (service, src, arrow, dst) = (next()?, next()?, next()?, next()?);
        if !matches!(arrow, ">" | "->" | "to") {
            return Err(NotAllowed::new(PacketText::ALLOWED));
        }
        let service: Service = service.parse()?;
        let Some(protocol) = service.protocol() else {
            return Err(NotAllowed::new("a packet has one protocol: tcp, udp, icmp, esp, proto/89 ..."));
        };
        if service.ports().is_some() {
            return Err(NotAllowed::new("ports stand with the addresses: tcp 10.0.1.5 > 198.51.100.7:443"));
        }
        let ((src, src_port), (dst, dst_port)) = (endpoint(src)?, endpoint(dst)?);
        if src.is_ipv4() != dst.is_ipv4() || !service.is_of(src.is_ipv4()) {
            return Err(NotAllowed::new("source, destination and protocol are of one family"));
        }
        let is_icmp = matches!(protocol, protocol::ICMP | protocol::ICMPV6);
        let (src_port, dst_port) = match (service.has_ports(), src_port, dst_port) {
            (true, _, None) => {
                return Err(NotAllowed::because(format!("{service} has a port: write {dst}:PORT")));
            }
            (true, from, Some(to)) => (from.unwrap_or(PacketText::ANY_PORT), to),
            (false, None, None) => (u16::from(is_icmp), 0),
            (false, _, _) => return Err(NotAllowed::because(format!("{service} has no ports"))),
        };
        let echo_request = if src.is_ipv4() { 8 } else { 128 };
        let mut packet = PacketText {
            protocol,
            src,
            src_port,
            dst,
            dst_port,
            icmp_type: if is_icmp { service.icmp_type().unwrap_or(echo_request) } else { 0 },
            interface: None,
            to: None,
            src_mac: None,
            dst_mac: None,
            dscp: 0,
            tcp_flags: if service.is_tcp() { 0x02 } else { 0 }, // SYN: a first packet
            ttl: PacketText::TTL,
            len_bytes: None,
        };
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| NotAllowed::because(format!("{word} what?")))?;
            match word {
                "from" => packet.interface = Some(Name::of_end(value)?),
                "to" => packet.to = Some(Name::of_end(value)?),
                "src-mac" => packet.src_mac = Some(value.parse()?),
                "dst-mac" => packet.dst_mac = Some(value.parse()?),
                "flags" if service.is_tcp() => {
                    packet.tcp_flags = 0;
                    for flag in value.split(',') {
                        let flag: TcpFlag = flag.parse()?;
                        packet.tcp_flags |= if flag.set { flag.bit } else { 0 };
                    }
                }
                "dscp" => packet.dscp = value.parse::<Dscp>()?.get(),
                "ttl" => {
                    let allowed = NotAllowed::new("a TTL is 0 to 255");
                    packet.ttl = value.parse().map_err(|_| allowed)?;
                }
                "length" => {
                    let len = value.parse().ok().filter(|len| *len <= PacketText::MAX_BYTES);
                    let allowed = || NotAllowed::new("a packet has up to 9000 bytes");
                    packet.len_bytes = Some(len.ok_or_else(allowed)?);
                }
                _ => {
                    return Err(NotAllowed::because(format!(
                        "{word:?} is not known; {}",
                        PacketText::ALLOWED
                    )));
                }
            }
        }
        Ok(packet)
    }
}

impl fmt::Display for PacketText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Service::of_protocol(self.protocol))?;
        if matches!(self.protocol, protocol::ICMP | protocol::ICMPV6) {
            write!(f, "/{}", self.icmp_type)?;
        }
        match self.has_ports() {
            true => {
                let (src, dst) =
                    (SocketAddr::new(self.src, self.src_port), SocketAddr::new(self.dst, self.dst_port));
                write!(f, " {src} > {dst}")?;
            }
            false => write!(f, " {} > {}", self.src, self.dst)?,
        }
        if let Some(interface) = &self.interface {
            write!(f, " from {interface}")?;
        }
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        for (what, mac) in [("src-mac", self.src_mac), ("dst-mac", self.dst_mac)] {
            if let Some(mac) = mac {
                write!(f, " {what} {mac}")?;
            }
        }
        if Service::of_protocol(self.protocol).is_tcp() && self.tcp_flags != 0x02 {
            let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
            let set = names.iter().enumerate().filter(|(bit, _)| self.tcp_flags >> bit & 1 == 1);
            let set: Vec<&str> = set.map(|(_, name)| *name).collect();
            match set.is_empty() {
                true => f.write_str(" flags !syn")?,
                false => write!(f, " flags {}", set.join(","))?,
            }
        }
        if self.dscp != 0 {
            write!(f, " dscp {}", self.dscp)?;
        }
        if self.ttl != PacketText::TTL {
            write!(f, " ttl {}", self.ttl)?;
        }
        self.len_bytes.map_or(Ok(()), |len| write!(f, " length {len}"))
    }
}

impl Serialize for PacketText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PacketText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PacketText, D::Error> {
        from_text(deserializer, PacketText::ALLOWED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_are_written() {
        for text in [
            "tcp 10.0.1.5:40000 > 198.51.100.7:443",
            "tcp 10.0.1.5:40000 > 198.51.100.7:443 from tenant-a flags syn,ack dscp 46 ttl 1 length 1500",
            "udp [2001:db8::1]:53 > [2001:db8::2]:53 from lan",
            "tcp 10.7.0.5:40000 > 10.7.0.9:5432 from seg-7/lan.100 to seg-7/vni5001 src-mac 02:00:00:00:00:01 dst-mac 02:00:00:00:00:02",
            "icmp/8 10.0.1.5 > 198.51.100.7",
            "icmpv6/128 2001:db8::1 > 2001:db8::2",
            "esp 10.0.1.5 > 198.51.100.7",
            "proto/89 10.0.1.5 > 198.51.100.7 flags",
        ] {
            let read = text.parse::<PacketText>().map(|packet| packet.to_string());
            match text.ends_with(" flags") {
                false => assert_eq!(read.as_deref(), Ok(text)),
                true => assert!(read.is_err(), "{text}"),
            }
        }
        let short: PacketText = "tcp 10.0.1.5 -> 198.51.100.7:443".parse().expect("a packet");
        assert_eq!((short.src_port, short.tcp_flags, short.ttl), (49_152, 2, 64));
        let ping: PacketText = "icmp/echo-reply 10.0.1.5 > 198.51.100.7".parse().expect("a packet");
        assert_eq!((ping.icmp_type, ping.src_port), (0, 1));
    }

    #[test]
    fn what_is_no_packet_says_why() {
        for (text, why) in [
            ("tcp 10.0.1.5 > 198.51.100.7", "write 198.51.100.7:PORT"),
            ("tcp/443 10.0.1.5 > 198.51.100.7:443", "ports stand with the addresses"),
            ("any 10.0.1.5 > 198.51.100.7", "one protocol"),
            ("esp 10.0.1.5:1 > 198.51.100.7", "has no ports"),
            ("icmp 2001:db8::1 > 2001:db8::2", "one family"),
            ("udp 10.0.1.5 > [2001:db8::2]:53", "one family"),
            ("udp 10.0.1.5 : 192.0.2.1:53", "write PROTOCOL"),
            ("udp 10.0.1 > 192.0.2.1:53", "is no address"),
            ("udp 10.0.1.1 > 192.0.2.1:53 via x", "\"via\" is not known"),
            ("udp 10.0.1.1 > 192.0.2.1:53 ttl 256", "0 to 255"),
            ("udp 10.0.1.1 > 192.0.2.1:53 ttl", "ttl what?"),
            ("udp 10.0.1.1 > 192.0.2.1:53 flags syn", "\"flags\" is not known"),
            ("udp 10.0.1.1 > 192.0.2.1:53 length 9001", "up to 9000"),
            ("", "write PROTOCOL"),
        ] {
            let error = text.parse::<PacketText>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
