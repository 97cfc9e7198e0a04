//! Cables in memory, and what must hold of each frame that leaves by one.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use softgate::io::Port;
use softgate::mem::{Frame, FramePool, Frames};
use softgate::packet::{Tags, checksum};
use softgate::tables::overlay::Overlay;
use softgate::tables::{NO_INTERFACE, Tables};

use super::mend::be16;

/// One port's cable: what comes in and what went out.
#[derive(Default)]
pub struct Wire {
    /// Of all frames that come in.
    pub bytes: Vec<u8>,
    /// Where each of them lies.
    pub frames: Vec<(usize, usize)>,
    /// The one that comes in next.
    pub next: usize,
    /// Frames that went out.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// First segment and rest of a sent chain, in one piece.
    whole: Vec<u8>,
}

impl Wire {
    /// Takes what was sent by another cable, if it looks for loops.
    fn come_back(&mut self, frame: &[u8]) {
        const LOOKS: [u8; 2] = [0x88, 0xb5];
        if frame.len() <= 64 && frame.len() >= 18 && frame[16..18] == LOOKS {
            self.frames.push((self.bytes.len(), frame.len()));
            self.bytes.extend_from_slice(frame);
        }
    }
}

/// A device on a cable.
pub struct WirePort {
    pub port: u16,
    pub wire: Arc<Mutex<Wire>>,
    pub tables: Arc<ArcSwap<Tables>>,
    /// Frames it takes from one flush to the next.
    pub room: usize,
    pub taken: usize,
    /// Frames that look for loops come in there again.
    pub around: Option<Arc<Mutex<Wire>>>,
}

pub fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().expect("a panic ends the process")
}

impl Port for WirePort {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let wire = &mut *lock(&self.wire);
        let before = frames.len();
        while wire.next < wire.frames.len() && !frames.is_full() {
            let (start, len) = wire.frames[wire.next];
            let Some(frame) = pool.take_filled(&wire.bytes[start..][..len]) else { break };
            frames.push(frame);
            wire.next += 1;
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let wire = &mut *lock(&self.wire);
        let count = frames.len().min(self.room - self.taken);
        self.taken += count;
        let tables = self.tables.load();
        for frame in frames.drain(..count) {
            wire.sent += 1;
            wire.sent_bytes += frame.total_len() as u64;
            if let Some(around) = &self.around {
                lock(around).come_back(frame.bytes());
            }
            if frame.is_chained() {
                gather(&frame, &mut wire.whole);
                check_sent(&wire.whole, self.port, &tables);
            } else {
                check_sent(frame.bytes(), self.port, &tables);
            }
            pool.put(frame);
        }
        count
    }

    fn flush(&mut self, _pool: &mut FramePool) {
        self.taken = 0;
    }
}

fn gather(frame: &Frame, whole: &mut Vec<u8>) {
    whole.clear();
    let mut at = Some(frame);
    while let Some(segment) = at {
        assert!(!segment.is_empty(), "an empty segment cannot be sent");
        whole.extend_from_slice(segment.bytes());
        at = segment.peek_next();
    }
}

/// What leaves is whole.
fn check_sent(frame: &[u8], port: u16, tables: &Tables) {
    let (mut tags, mut l3) = ([0u16; 2], 14);
    for tag in &mut tags {
        if matches!(be16(frame, l3 - 2), 0x8100 | 0x88a8) {
            *tag = be16(frame, l3) as u16 & 0xfff;
            l3 += 4;
        }
    }
    let table = &tables.ports[usize::from(port)];
    let slot = match tags {
        [0, 0] => table.untagged,
        [outer, inner] => table.find(Tags { outer, inner }),
    };
    assert_ne!(slot, NO_INTERFACE, "sent with tags {tags:?} by port {port}, which has no such interface");
    let interface = tables.interface(slot);
    if interface.is_member() {
        // Whatever hosts say to each other.
        assert!(
            frame.len() - l3 <= usize::from(interface.mtu_bytes),
            "{} bytes over the MTU",
            frame.len() - l3
        );
        return;
    }
    assert_eq!(frame[6..12], interface.mac.to_be_bytes()[2..], "sent with our MAC address");
    let ip = &frame[l3..];
    match be16(frame, l3 - 2) {
        0x0806 => assert_eq!(ip.len(), 28, "an ARP packet"),
        0x0800 => {
            let header_len = usize::from(ip[0] & 15) * 4;
            assert!(ip[0] >> 4 == 4 && header_len >= 20);
            assert_eq!(be16(ip, 2), ip.len(), "the IPv4 length is the frame's");
            assert!(checksum::is_valid(&ip[..header_len]), "the IPv4 header checksum");
            assert_ne!(ip[8], 0, "sent with TTL 0");
            assert!(ip.len() <= usize::from(interface.mtu_bytes), "{} bytes over the MTU", ip.len());
            // Ours, and no fragment: others' are not looked into.
            let source = Ipv4Addr::from(*ip[12..].first_chunk::<4>().expect("a header"));
            if ip[9] == 17 && be16(ip, 6) & 0x3fff == 0 && interface.owns_v4(source) {
                check_tunnelled(&ip[header_len..], tables);
            }
        }
        0x86dd => {
            assert_eq!(ip[0] >> 4, 6);
            assert_eq!(40 + be16(ip, 4), ip.len(), "the IPv6 length is the frame's");
            assert_ne!(ip[7], 0, "sent with hop limit 0");
            assert!(ip.len() <= usize::from(interface.mtu_bytes), "{} bytes over the MTU", ip.len());
            let source = Ipv6Addr::from(*ip[8..].first_chunk::<16>().expect("a header"));
            if ip[6] == 17 && interface.owns_v6(source) {
                check_tunnelled(&ip[40..], tables);
            }
        }
        other => panic!("sent a frame of EtherType {other:#06x}"),
    }
}

/// What leaves in a tunnel of ours is whole as well. Somebody else may send with our address: inside is a frame of ours
/// then.
fn check_tunnelled(udp: &[u8], tables: &Tables) {
    // Members of bridges pass on what hosts say.
    let has_our_mac = |overlay: &Overlay| {
        let interface = tables.interface(overlay.interface);
        let mac = interface.mac.to_be_bytes();
        udp.get(16 + 6..16 + 12) == Some(&mac[2..]) && !interface.is_member()
    };
    if be16(udp, 2) != 4789 || !tables.overlays.all().iter().any(has_our_mac) {
        return;
    }
    assert_eq!(be16(udp, 4), udp.len(), "the UDP length is the packet's");
    assert_eq!(udp[8], 8, "the I flag alone");
    let frame = &udp[16..];
    let ip = &frame[14..];
    match be16(frame, 12) {
        0x0806 => assert_eq!(ip.len(), 28, "an ARP packet in a tunnel"),
        0x0800 => {
            let header_len = usize::from(ip[0] & 15) * 4;
            assert_eq!(be16(ip, 2), ip.len(), "the IPv4 length is that of the frame in the tunnel");
            assert!(checksum::is_valid(&ip[..header_len]), "the IPv4 header checksum in the tunnel");
            assert_ne!(ip[8], 0, "sent with TTL 0 in a tunnel");
        }
        0x86dd => {
            assert_eq!(40 + be16(ip, 4), ip.len(), "the IPv6 length is that of the frame in the tunnel");
            assert_ne!(ip[7], 0, "sent with hop limit 0 in a tunnel");
        }
        other => panic!("sent a frame of EtherType {other:#06x} in a tunnel"),
    }
}
