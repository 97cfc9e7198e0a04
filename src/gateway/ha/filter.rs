//! Which frames of a device the virtual routers and the BFD sessions of a link get to see: filters that the kernel runs.

use crate::ha::bfd::packet::UDP_PORT;
use crate::io::packet_socket::Instruction;
use crate::packet::Tags;
use crate::packet::view::{ethertype, protocol};

pub(super) const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;

/// linux/filter.h.
const LDW: u16 = 0x20;
const LDH: u16 = 0x28;
const LDB: u16 = 0x30;
/// A word and a half word behind the index register.
const LDW_INDEXED: u16 = 0x40;
const LDH_INDEXED: u16 = 0x48;
/// Index register: length of the IPv4 header at this place.
const LDX_HEADER: u16 = 0xb1;
const AND: u16 = 0x54;
const JEQ: u16 = 0x15;
const REJECT: Instruction = (0x06, 0, 0, 0);
const ACCEPT: Instruction = (0x06, 0, 0, 0xffff);
const VID: Instruction = (AND, 0, 0, 0xfff);

fn load(size: u16, at: usize) -> Instruction {
    (size, 0, 0, at as u32)
}

/// Lost, unless what was loaded is this.
fn is(value: u32) -> [Instruction; 2] {
    [(JEQ, 1, 0, value), REJECT]
}

/// What has to stand where: size, place, value.
fn all(checks: &[(u16, usize, u32)]) -> impl Iterator<Item = Instruction> {
    checks.iter().flat_map(|(size, at, value)| {
        let [test, reject] = is(*value);
        [load(*size, *at), test, reject]
    })
}

/// Advertisements of one link, from its own network (RFC 9568 section 5.1: to the group, with TTL or hop limit 255):
/// what others of the port are flooded with does not come into its queue.
pub(super) fn vrrp(tags: Tags) -> Vec<Instruction> {
    let ip = header_bytes(tags);
    let vrrp = protocol::VRRP.into();
    // 224.0.0.18 and ff02::12.
    let v4 = [(LDB, ip + 8, 255), (LDB, ip + 9, vrrp), (LDW, ip + 16, 0xe000_0012)];
    let v6 = [
        (LDB, ip + 6, vrrp),
        (LDB, ip + 7, 255),
        (LDW, ip + 24, 0xff02_0000),
        (LDW, ip + 28, 0),
        (LDW, ip + 32, 0),
        (LDW, ip + 36, 0x12),
    ];
    filter(tags, all(&v4).collect(), all(&v6).collect())
}

/// BFD control packets of one link, from its own network (RFC 5881 section 5: with TTL or hop limit 255). Fragments are
/// nobody's.
pub(super) fn bfd(tags: Tags) -> Vec<Instruction> {
    let ip = header_bytes(tags);
    let (udp, port) = (protocol::UDP.into(), u32::from(UDP_PORT));
    let mut v4: Vec<Instruction> = all(&[(LDB, ip + 8, 255), (LDB, ip + 9, udp)]).collect();
    v4.extend([load(LDH, ip + 6), (AND, 0, 0, 0x3fff)]);
    v4.extend(is(0));
    v4.extend([load(LDX_HEADER, ip), load(LDH_INDEXED, ip + 2)]);
    v4.extend(is(port));
    let v6 = [(LDB, ip + 6, udp), (LDB, ip + 7, 255), (LDH, ip + 42, port)];
    filter(tags, v4, all(&v6).collect())
}

/// Frames to the groups of VRRP in 8 bytes of VXLAN or Geneve, under up to two tags: which virtual network they are of is
/// looked at where the tables are.
pub(super) fn tunnelled_vrrp() -> Vec<Instruction> {
    /// From the UDP header to the destination MAC address of the frame inside.
    const INNER: usize = 16;
    let udp = protocol::UDP.into();
    // The lower half of the address, then the upper ones of either family.
    let low = is(0x0012);
    let high = [(JEQ, 1, 0, 0x0100_5e00), (JEQ, 0, 1, 0x3333_0000), ACCEPT, REJECT];
    let families = |ip: usize| {
        let mut v4: Vec<Instruction> = all(&[(LDB, ip + 9, udp)]).collect();
        v4.extend([load(LDH, ip + 6), (AND, 0, 0, 0x3fff)]);
        v4.extend(is(0));
        v4.extend([load(LDX_HEADER, ip), load(LDH_INDEXED, ip + INNER + 4)]);
        v4.extend(low);
        v4.push(load(LDW_INDEXED, ip + INNER));
        v4.extend(high);
        let mut v6: Vec<Instruction> = all(&[(LDB, ip + 6, udp)]).collect();
        v6.push(load(LDH, ip + 40 + INNER + 4));
        v6.extend(low);
        v6.push(load(LDW, ip + 40 + INNER));
        v6.extend(high);
        either(ip - 2, v4, v6)
    };
    let plain = families(ETHERNET_BYTES);
    // To behind what is not tagged, if a tag is left.
    let skip = plain.len() as u8;
    let mut code = vec![
        load(LDH, 12),
        (JEQ, skip + 1, 0, ethertype::VLAN.into()),
        (JEQ, skip, 0, ethertype::QINQ.into()),
    ];
    code.extend(plain);
    code.extend(families(ETHERNET_BYTES + TAG_BYTES));
    code
}

/// What is of a family, by the EtherType at `kind`, passes what looks at that family.
fn either(kind: usize, mut v4: Vec<Instruction>, v6: Vec<Instruction>) -> Vec<Instruction> {
    v4.splice(0..0, is(ethertype::IPV4.into()));
    let mut code = vec![load(LDH, kind), (JEQ, v4.len() as u8, 0, ethertype::IPV6.into())];
    code.extend(v4);
    code.extend(v6);
    code
}

/// What has the tags of a link, and of either family passes these. The kernel has taken the outer tag out.
fn filter(tags: Tags, mut v4: Vec<Instruction>, mut v6: Vec<Instruction>) -> Vec<Instruction> {
    /// linux/filter.h: SKF_AD_OFF + SKF_AD_VLAN_TAG, and SKF_AD_VLAN_TAG_PRESENT.
    const VLAN_TAG: u32 = 0xffff_f000 + 44;
    const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
    let (outer, inner) = match tags {
        Tags { outer: 0, inner: vid } | Tags { outer: vid, inner: 0 } => (vid, 0),
        Tags { outer, inner } => (outer, inner),
    };
    let mut code = vec![(LDW, 0, 0, VLAN_TAG_PRESENT)];
    match outer {
        // A tag with VID 0 is a priority alone: without any tag, past the four that look at it.
        0 => code.push((JEQ, 4, 0, 0)),
        _ => code.extend([(JEQ, 0, 1, 0), REJECT]),
    }
    code.extend([(LDW, 0, 0, VLAN_TAG), VID]);
    code.extend(is(outer.into()));
    if inner != 0 {
        let kinds = [(JEQ, 2, 0, ethertype::VLAN.into()), (JEQ, 1, 0, ethertype::QINQ.into()), REJECT];
        code.push(load(LDH, 12));
        code.extend(kinds);
        code.extend([load(LDH, 14), VID]);
        code.extend(is(inner.into()));
    }
    let kind = header_bytes(tags) - 2;
    v4.push(ACCEPT);
    v6.push(ACCEPT);
    code.extend(either(kind, v4, v6));
    code
}

/// Bytes before the IP header of a received frame, of which the kernel has taken the outer tag.
pub(super) fn header_bytes(tags: Tags) -> usize {
    let is_double = tags.outer != 0 && tags.inner != 0;
    ETHERNET_BYTES + if is_double { TAG_BYTES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a filter (linux/filter.h), of a frame whose outer tag it has taken out.
    fn is_accepted(code: &[Instruction], tci: Option<u16>, frame: &[u8]) -> bool {
        let (mut at, mut loaded, mut index) = (0, 0u32, 0);
        loop {
            let (operation, jt, jf, k) = code[at];
            at += 1;
            let bytes_at = |at: usize, len: usize| {
                let bytes = frame.get(at..at + len)?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            };
            let bytes = |len: usize| bytes_at(k as usize, len);
            let value = match (operation, k) {
                (0x20, 0xffff_f02c) => Some(tci.unwrap_or(0x1fff).into()),
                (0x20, 0xffff_f030) => Some(tci.is_some().into()),
                (0x20, _) => bytes(4),
                (0x28, _) => bytes(2),
                (0x30, _) => bytes(1),
                (0x40, _) => bytes_at(index + k as usize, 4),
                (0x48, _) => bytes_at(index + k as usize, 2),
                (0xb1, _) => {
                    let Some(first) = bytes(1) else { return false };
                    index = (first as usize & 15) * 4;
                    Some(loaded)
                }
                (0x54, _) => Some(loaded & k),
                (0x15, _) => {
                    at += usize::from(if loaded == k { jt } else { jf });
                    Some(loaded)
                }
                (0x06, _) => return k != 0,
                (other, _) => panic!("no such operation: {other:#x}"),
            };
            // Beyond the end of the frame: not accepted.
            let Some(value) = value else { return false };
            loaded = value;
        }
    }

    /// With an IP packet, and the tag that the kernel has left.
    fn frame(left: &[u8], packet: &[u8]) -> Vec<u8> {
        let kind: &[u8] = if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] };
        [&[2; 12], left, kind, packet].concat()
    }

    /// The packets pass by the tags of their link alone; of each, the bytes at these places matter.
    fn check(make: fn(Tags) -> Vec<Instruction>, packets: [(&[u8], &[usize]); 2]) {
        let q300: &[u8] = &[0x81, 0, 0x61, 0x2c];
        let [plain, tagged, double] =
            [(0, 0), (100, 0), (100, 300)].map(|(outer, inner)| Tags { outer, inner });
        for (packet, places) in packets {
            for (tags, tci, left, expected) in [
                (plain, None, &[][..], true),
                (plain, Some(0xe000), &[], true),
                (plain, Some(100), &[], false),
                (plain, None, q300, false),
                (tagged, Some(0xe064), &[], true),
                (tagged, Some(101), &[], false),
                (tagged, None, &[], false),
                (tagged, Some(100), q300, false),
                (double, Some(100), q300, true),
                (double, Some(100), &[0x81, 0, 0x01, 0x2d], false),
                (double, Some(100), &[], false),
                (double, Some(101), q300, false),
            ] {
                let taken = is_accepted(&make(tags), tci, &frame(left, packet));
                assert_eq!(taken, expected, "{tags:?}, {tci:?} {left:?}, {packet:?}");
            }
            for at in places {
                let mut packet = packet.to_vec();
                packet[*at] ^= 1;
                assert!(!is_accepted(&make(plain), None, &frame(&[], &packet)), "{at}");
            }
            assert!(!is_accepted(&make(plain), None, &frame(&[], &packet[..16])), "truncated");
            let mut other_family = frame(&[], packet);
            other_family[12..14].copy_from_slice(if packet[0] >> 4 == 4 { &[0x86, 0xdd] } else { &[8, 0] });
            assert!(!is_accepted(&make(plain), None, &other_family));
        }
    }

    #[test]
    fn a_link_takes_its_own_advertisements_alone() {
        let mut v4 = [0; 32];
        (v4[0], v4[8], v4[9]) = (0x45, 255, 112);
        v4[16..20].copy_from_slice(&[224, 0, 0, 18]);
        let mut v6 = [0; 52];
        (v6[0], v6[6], v6[7]) = (0x60, 112, 255);
        (v6[24], v6[25], v6[39]) = (0xff, 2, 0x12);
        // TTL, protocol, the ends of the group's address.
        check(vrrp, [(&v4, &[8, 9, 16, 19]), (&v6, &[6, 7, 24, 39])]);
    }

    #[test]
    fn a_tunnel_is_looked_into_for_the_groups_alone() {
        for (first, inner) in [(0x45, [1, 0, 0x5e, 0, 0, 0x12]), (0x60, [0x33, 0x33, 0, 0, 0, 0x12])] {
            for header in [20, 24, 40] {
                let mut packet = vec![0; header];
                packet[0] = if header == 24 { 0x46 } else { first };
                match header {
                    40 => (packet[0], packet[6]) = (0x60, 17),
                    _ => (packet[0], packet[9]) = (0x40 + (header / 4) as u8, 17),
                }
                packet.extend([0; 16]);
                packet.extend(inner);
                packet.extend([0; 30]);
                let code = tunnelled_vrrp();
                for left in [&[][..], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 7]] {
                    assert!(is_accepted(&code, None, &frame(left, &packet)), "{header}");
                    assert!(is_accepted(&code, Some(7), &frame(left, &packet)), "{header}");
                    // The protocol, and each byte of the group.
                    let protocol = if header == 40 { 6 } else { 9 };
                    for at in [protocol].into_iter().chain(header + 16..header + 22) {
                        let mut other = packet.clone();
                        other[at] ^= 1;
                        assert!(!is_accepted(&code, None, &frame(left, &other)), "{header} {at}");
                    }
                    assert!(!is_accepted(&code, None, &frame(left, &packet[..header + 20])));
                }
                assert!(!is_accepted(&code, None, &frame(&[0x91, 0, 0, 7], &packet)));
            }
        }
        assert!(!is_accepted(&tunnelled_vrrp(), None, &[0; 14]));
    }

    #[test]
    fn a_link_takes_its_own_bfd_alone() {
        let mut v4 = [0; 52];
        (v4[0], v4[6], v4[8], v4[9]) = (0x45, 0x40, 255, 17);
        v4[22..24].copy_from_slice(&[0x0e, 0xc8]);
        let mut v6 = [0; 72];
        (v6[0], v6[6], v6[7]) = (0x60, 17, 255);
        v6[42..44].copy_from_slice(&[0x0e, 0xc8]);
        // TTL, protocol, port; of IPv4 the offset of a fragment and the length of the header.
        check(bfd, [(&v4, &[0, 7, 8, 9, 22, 23]), (&v6, &[6, 7, 42, 43])]);
        let mut with_options = [&v4[..20], &[1; 4], &v4[20..]].concat();
        with_options[0] = 0x46;
        let takes = |packet: &[u8]| is_accepted(&bfd(Tags { outer: 0, inner: 0 }), None, &frame(&[], packet));
        assert!(takes(&with_options));
        // The first of several fragments.
        with_options[6] = 0x20;
        assert!(!takes(&with_options));
    }
}
