//! Advertisements in tunnels: VXLAN and Geneve packets to our tunnel end points, heard by packet sockets of the devices that
//! they come by, and taken out as the workers would.

use std::os::fd::{AsRawFd as _, RawFd};

use super::filter;
use super::sockets::RETRY;
use crate::io::packet_socket::PacketSocket;
use crate::neighbours::v4_key;
use crate::packet::Tags;
use crate::packet::checksum;
use crate::packet::view::{array, be16, be32, be128, ethertype, protocol};
use crate::pipeline::{VXLAN_BYTES, options_bytes};
use crate::roles::Roles;
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::virtual_router::may_be_virtual;
use crate::tables::{NO_INTERFACE, Tables};
use crate::time::Nanos;

/// Frames taken from a device before timers are looked at again.
const BATCH: usize = 64;
/// Room for the longest advertisement with options, in a tunnel, under two tags.
const BUFFER_BYTES: usize = 2048;
const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const UDP_BYTES: usize = 8;
const VID_MASK: u16 = 0xfff;

/// A device by which tunnels may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedEnd {
    pub name: String,
    pub ifindex: u32,
    /// Port slot.
    pub port: u16,
}

/// An advertisement that was in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tunnelled<'a> {
    /// Slot of the VNI's interface.
    pub interface: u16,
    /// The IP packet.
    pub packet: &'a [u8],
}

/// The sockets that hear tunnels.
#[derive(Default)]
pub(super) struct Tunnels {
    open: Vec<(PlannedEnd, PacketSocket)>,
    /// Those that could not be opened, and when they are tried again.
    missing: Vec<PlannedEnd>,
    retry: Nanos,
}

impl Tunnels {
    /// Listens to these devices and no others. What is listened to already goes on.
    pub fn follow(&mut self, ends: Vec<PlannedEnd>, now: Nanos) {
        let mut old = std::mem::take(&mut self.open);
        let mut new = Vec::new();
        for end in ends {
            match old.iter().position(|(known, _)| known.ifindex == end.ifindex) {
                Some(at) => self.open.push((end, old.swap_remove(at).1)),
                None => new.push(end),
            }
        }
        self.missing.clear();
        self.open(new, false, now);
    }

    /// Tries again what could not be opened, if it is time. True: it was.
    pub fn try_again(&mut self, now: Nanos) -> bool {
        if self.missing.is_empty() || now < self.retry {
            return false;
        }
        let missing = std::mem::take(&mut self.missing);
        self.open(missing, true, now);
        true
    }

    fn open(&mut self, ends: Vec<PlannedEnd>, is_retry: bool, now: Nanos) {
        for end in ends {
            let socket = PacketSocket::open(end.ifindex, &filter::tunnelled_vrrp());
            match socket.and_then(|socket| socket.tell_tags().map(|()| socket)) {
                Ok(socket) => self.open.push((end, socket)),
                Err(error) => {
                    if !is_retry {
                        tracing::warn!(device = end.name, %error, "cannot listen to virtual routers in tunnels");
                    }
                    self.missing.push(end);
                }
            }
        }
        self.retry = now.plus(RETRY);
    }

    /// True if tunnels are heard.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Takes what has come in: device, frame, and the tag that the kernel has taken out. True: there may be more.
    pub fn receive(&self, mut take: impl FnMut(&PlannedEnd, &[u8], Option<u16>)) -> bool {
        let mut buffer = [0; BUFFER_BYTES];
        let mut has_more = false;
        for (end, socket) in &self.open {
            let mut taken = 0;
            while taken < BATCH {
                let Ok(Some((len, tci))) = socket.receive_tagged(&mut buffer) else { break };
                taken += 1;
                take(end, &buffer[..len], tci);
            }
            has_more |= taken == BATCH;
        }
        has_more
    }

    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.open.iter().map(|(_, socket)| socket.as_raw_fd())
    }
}

/// The packet in a tunnel to one of our tunnel end points, from a sender that is permitted there. What the workers would
/// not take out they count; here it is nobody's.
pub(super) fn take_out<'a>(
    frame: &'a [u8],
    tci: Option<u16>,
    port: u16,
    (tables, roles): (&Tables, &Roles),
) -> Option<Tunnelled<'a>> {
    let mut vids = [0; 2];
    let mut tags = 0;
    if let Some(tci) = tci {
        (vids[0], tags) = (tci & VID_MASK, 1);
    }
    let mut l3 = ETHERNET_BYTES;
    let mut kind = be16(frame.first_chunk::<ETHERNET_BYTES>()?, 12);
    while (kind == ethertype::VLAN || kind == ethertype::QINQ) && tags < 2 {
        let tag: &[u8; TAG_BYTES] = frame.get(l3..)?.first_chunk()?;
        (vids[tags], kind) = (be16(tag, 0) & VID_MASK, be16(tag, 2));
        (l3, tags) = (l3 + TAG_BYTES, tags + 1);
    }
    let slot = tables.ports.get(usize::from(port))?.find(Tags { outer: vids[0], inner: vids[1] });
    if slot == NO_INTERFACE {
        return None;
    }
    let came_by = tables.interface(slot);
    let mac = u64::from_be_bytes(*frame.first_chunk()?) >> 16;
    let is_ours = mac == came_by.mac || may_be_virtual(mac) && came_by.has_virtual_mac(mac, roles);
    // Hosts of a bridged segment are no tunnel end points.
    if came_by.bridge != NO_BRIDGE || !is_ours {
        return None;
    }
    let l3 = frame.get(l3..)?;
    let (src, dst, udp, pseudo) = match kind {
        ethertype::IPV4 => outer_v4(l3)?,
        ethertype::IPV6 => outer_v6(l3)?,
        _ => return None,
    };
    let head = udp.first_chunk::<{ UDP_BYTES + VXLAN_BYTES + ETHERNET_BYTES }>()?;
    if be16(head, 6) != 0 && checksum::fold(pseudo + checksum::add(0, udp)) != 0xffff {
        return None;
    }
    let overlay = tables.overlays.find(came_by.vrf, dst, be16(head, 2), be32(head, 12) >> 8)?;
    let is_taken = overlay.is_here(roles) && overlay.permits(src);
    // The XDP program looks for a frame behind 8 bytes, without options.
    if !is_taken || options_bytes(overlay.spec.encapsulation, array(head, UDP_BYTES)) != Some(0) {
        return None;
    }
    let inner = &head[UDP_BYTES + VXLAN_BYTES..];
    let is_ip = matches!(be16(inner, 12), ethertype::IPV4 | ethertype::IPV6);
    (inner[0] & 1 != 0 && is_ip)
        .then(|| Tunnelled { interface: overlay.interface, packet: &udp[head.len()..] })
}

/// Sender, destination, datagram, sum of the pseudo header.
type Outer<'a> = (u128, u128, &'a [u8], u64);

fn outer_v4(l3: &[u8]) -> Option<Outer<'_>> {
    let header = l3.first_chunk::<20>()?;
    let len = usize::from(header[0] & 15) * 4;
    let is_sound = header[0] >> 4 == 4
        && len >= header.len()
        && header[9] == protocol::UDP
        && be16(header, 6) & 0x3fff == 0
        && l3.get(..len).is_some_and(checksum::is_valid);
    let udp = datagram(l3.get(len..usize::from(be16(header, 2))).filter(|_| is_sound)?)?;
    let pseudo = checksum::pseudo_v4(*array(header, 12), *array(header, 16), protocol::UDP, udp.len());
    Some((v4_key(be32(header, 12)), v4_key(be32(header, 16)), udp, pseudo))
}

fn outer_v6(l3: &[u8]) -> Option<Outer<'_>> {
    let header = l3.first_chunk::<40>()?;
    let is_sound = header[0] >> 4 == 6 && header[6] == protocol::UDP;
    let rest = l3.get(header.len()..header.len() + usize::from(be16(header, 4)));
    let udp = datagram(rest.filter(|_| is_sound)?)?;
    let pseudo = checksum::pseudo_v6(array(header, 8), array(header, 24), protocol::UDP, udp.len());
    Some((be128(header, 8), be128(header, 24), udp, pseudo))
}

/// As long as its header says.
fn datagram(udp: &[u8]) -> Option<&[u8]> {
    let len = usize::from(be16(udp.first_chunk::<UDP_BYTES>()?, 4));
    udp.get(..len).filter(|udp| udp.len() >= UDP_BYTES)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::neighbours::mac_from_u64;
    use crate::roles::Part;

    const CONFIG: &str = r#"
schema = 1
[[port]]
name = "lan"
device = "eth1"
[[interface]]
name = "under"
port = "lan"
vlan = 100
addresses = ["198.51.100.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "double"
port = "lan"
vlan = [200, 10]
vrf = "other"
addresses = ["198.51.100.1/24"]
[[bridge]]
name = "seg"
members = [{ port = "lan", vlan = 7 }]
[[interface]]
name = "four"
vni = 5001
vtep = "198.51.100.1"
remotes = ["198.51.100.9"]
addresses = ["10.9.0.1/24"]
[[interface]]
name = "six"
vni = 5002
vtep = "2001:db8:ff::1"
remotes = ["2001:db8:ff::9"]
encapsulation = "geneve"
addresses = ["10.9.1.1/24"]
[[interface]]
name = "moves"
vni = 5003
vtep = "198.51.100.254"
remotes = ["198.51.100.9"]
mac = "02:00:5e:00:00:01"
addresses = ["10.9.2.1/24"]
[[vrf]]
name = "other"
[[vrrp]]
interface = "under"
id = 1
addresses = ["198.51.100.254"]
"#;

    const TAGGED: Option<u16> = Some(0xe064);
    const ADVERT: &[u8] = &[0x45, 1, 2, 3, 4];

    fn tables() -> Arc<Tables> {
        let config = Config::parse(CONFIG, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        let compiler = crate::replay::compile_tables(&config, 64).expect("tables");
        Arc::clone(compiler.tables())
    }

    fn slot_of(tables: &Tables, name: &str) -> u16 {
        tables.interfaces.iter().position(|interface| interface.info.name == name).expect("it is there")
            as u16
    }

    /// In a tunnel to an end point of ours, from the outer tag on that the kernel has left.
    fn frame(tables: &Tables, vni: u32, (src, dst): (&str, &str), left: &[u8]) -> Vec<u8> {
        let inner = [&[1, 0, 0x5e, 0, 0, 0x12, 0, 0, 0x5e, 0, 1, 10, 8, 0], ADVERT].concat();
        let (src, dst) = (src.parse().expect("an address"), dst.parse().expect("an address"));
        let header: [u8; 4] = if vni == 5002 { [0, 0, 0x65, 0x58] } else { [8, 0, 0, 0] };
        let port: u16 = if vni == 5002 { 6081 } else { 4789 };
        let udp_len = (UDP_BYTES + VXLAN_BYTES + inner.len()) as u16;
        let mut udp = [[0xc0, 1], port.to_be_bytes(), udp_len.to_be_bytes(), [0, 0]].concat();
        udp.extend(header);
        udp.extend((vni << 8).to_be_bytes());
        udp.extend(inner);
        let (kind, ip, pseudo) = match (src, dst) {
            (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => {
                let mut ip = vec![0x45, 0, 0, 20 + udp_len as u8, 0, 0, 0, 0, 64, 17, 0, 0];
                ip.extend(src.octets());
                ip.extend(dst.octets());
                let sum = checksum::of(&ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                (ethertype::IPV4, ip, checksum::pseudo_v4(src.octets(), dst.octets(), 17, udp.len()))
            }
            (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => {
                let mut ip = vec![0x60, 0, 0, 0, 0, udp_len as u8, 17, 64];
                ip.extend(src.octets());
                ip.extend(dst.octets());
                (ethertype::IPV6, ip, checksum::pseudo_v6(&src.octets(), &dst.octets(), 17, udp.len()))
            }
            _ => unreachable!("both are of one family"),
        };
        let sum = !checksum::fold(pseudo + checksum::add(0, &udp));
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        let mac = mac_from_u64(tables.interface(slot_of(tables, "under")).mac);
        [&mac[..], &[2, 0, 0, 0, 0, 9], left, &kind.to_be_bytes(), &ip, &udp].concat()
    }

    const ENDS: (&str, &str) = ("198.51.100.9", "198.51.100.1");

    #[test]
    fn what_a_permitted_sender_says_comes_out() {
        let (tables, roles) = (tables(), Roles::default());
        let out = |frame: &[u8], tci: Option<u16>| {
            take_out(frame, tci, 0, (&tables, &roles)).map(|found| (found.interface, found.packet.to_vec()))
        };
        let (four, six) = (slot_of(&tables, "four"), slot_of(&tables, "six"));
        let good = frame(&tables, 5001, ENDS, &[]);
        assert_eq!(out(&good, TAGGED), Some((four, ADVERT.to_vec())));
        let over_v6 = frame(&tables, 5002, ("2001:db8:ff::9", "2001:db8:ff::1"), &[]);
        assert_eq!(out(&over_v6, TAGGED), Some((six, ADVERT.to_vec())));
        // Padding is no part of it.
        assert_eq!(out(&[&good[..], &[0; 9]].concat(), TAGGED), Some((four, ADVERT.to_vec())));
        // By other tags: untagged nothing is configured, the pair is another VRF's, and VLAN 7 a segment of hosts.
        assert_eq!(out(&good, None), None);
        assert_eq!(out(&good, Some(7)), None);
        assert_eq!(out(&frame(&tables, 5001, ENDS, &[0x81, 0, 0, 10]), Some(200)), None);
        assert_eq!(out(&frame(&tables, 5001, ("198.51.100.8", ENDS.1), &[]), TAGGED), None, "another sender");
        assert_eq!(out(&frame(&tables, 5001, (ENDS.0, "198.51.100.2"), &[]), TAGGED), None, "another end");
        assert_eq!(out(&frame(&tables, 5002, ENDS, &[]), TAGGED), None, "another VNI");
        // Where the end is a virtual router's its Active alone hears.
        let moves = frame(&tables, 5003, (ENDS.0, "198.51.100.254"), &[]);
        assert_eq!(out(&moves, TAGGED), None);
        let role = tables.interface(slot_of(&tables, "under")).info.routers[0].role;
        roles.set(role, Part::Active, Nanos(1));
        assert_eq!(out(&moves, TAGGED), Some((slot_of(&tables, "moves"), ADVERT.to_vec())));
    }

    #[test]
    fn nothing_else_does() {
        let (tables, roles) = (tables(), Roles::default());
        for good in
            [frame(&tables, 5001, ENDS, &[]), frame(&tables, 5002, ("2001:db8:ff::9", "2001:db8:ff::1"), &[])]
        {
            for len in 0..good.len() {
                assert_eq!(take_out(&good[..len], TAGGED, 0, (&tables, &roles)), None, "{len} bytes");
            }
            assert_eq!(take_out(&good, TAGGED, 9, (&tables, &roles)), None, "another port");
            // Both checksums see every bit, but of source MAC address, and IPv6's flow label and hop limit.
            let is_v6 = good[12] == 0x86;
            for at in 0..good.len() {
                let mut other = good.clone();
                other[at] ^= 0x55;
                let is_free = (6..12).contains(&at) || is_v6 && (15..18).contains(&at) || is_v6 && at == 21;
                let found = take_out(&other, TAGGED, 0, (&tables, &roles));
                assert_eq!(found.is_some(), is_free, "byte {at} of {}", good.len());
            }
        }
    }
}
