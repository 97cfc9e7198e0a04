//! Which frames of a device the virtual routers of a link get to see: a filter that the kernel runs.

use crate::io::packet_socket::Instruction;
use crate::packet::Tags;
use crate::packet::view::{ethertype, protocol};

pub(super) const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;

/// Advertisements of one link, from its own network (RFC 9568 section 5.1: to the group, with TTL or hop limit 255):
/// what others of the port are flooded with does not come into its queue. The kernel has taken the outer tag out.
pub(super) fn filter(tags: Tags) -> Vec<Instruction> {
    const LDW: u16 = 0x20;
    const LDH: u16 = 0x28;
    const LDB: u16 = 0x30;
    const AND: u16 = 0x54;
    const JEQ: u16 = 0x15;
    const REJECT: Instruction = (0x06, 0, 0, 0);
    const ACCEPT: Instruction = (0x06, 0, 0, 0xffff);
    /// linux/filter.h: SKF_AD_OFF + SKF_AD_VLAN_TAG, and SKF_AD_VLAN_TAG_PRESENT.
    const VLAN_TAG: u32 = 0xffff_f000 + 44;
    const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
    const VID: Instruction = (AND, 0, 0, 0xfff);
    let load = |size: u16, at: usize| (size, 0, 0, at as u32);
    let is = |value: u32| [(JEQ, 1, 0, value), REJECT];

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
    let ip = header_bytes(tags);
    let family = |checks: &[(u16, usize, u32)]| {
        let checks = checks.iter().flat_map(|(size, at, value)| {
            let [test, reject] = is(*value);
            [load(*size, *at), test, reject]
        });
        checks.chain([ACCEPT]).collect::<Vec<_>>()
    };
    let vrrp = protocol::VRRP.into();
    // 224.0.0.18 and ff02::12.
    let v4 = family(&[
        (LDH, ip - 2, ethertype::IPV4.into()),
        (LDB, ip + 8, 255),
        (LDB, ip + 9, vrrp),
        (LDW, ip + 16, 0xe000_0012),
    ]);
    let v6 = family(&[
        (LDH, ip - 2, ethertype::IPV6.into()),
        (LDB, ip + 6, vrrp),
        (LDB, ip + 7, 255),
        (LDW, ip + 24, 0xff02_0000),
        (LDW, ip + 28, 0),
        (LDW, ip + 32, 0),
        (LDW, ip + 36, 0x12),
    ]);
    code.extend([load(LDH, ip - 2), (JEQ, v4.len() as u8, 0, ethertype::IPV6.into())]);
    code.extend(v4);
    code.extend(v6);
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
        let (mut at, mut loaded) = (0, 0u32);
        loop {
            let (operation, jt, jf, k) = code[at];
            at += 1;
            let bytes = |len: usize| {
                let bytes = frame.get(k as usize..k as usize + len)?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            };
            let value = match (operation, k) {
                (0x20, 0xffff_f02c) => Some(tci.unwrap_or(0x1fff).into()),
                (0x20, 0xffff_f030) => Some(tci.is_some().into()),
                (0x20, _) => bytes(4),
                (0x28, _) => bytes(2),
                (0x30, _) => bytes(1),
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

    #[test]
    fn a_link_takes_its_own_advertisements_alone() {
        let mut v4 = [0; 32];
        (v4[0], v4[8], v4[9]) = (0x45, 255, 112);
        v4[16..20].copy_from_slice(&[224, 0, 0, 18]);
        let mut v6 = [0; 52];
        (v6[0], v6[6], v6[7]) = (0x60, 112, 255);
        (v6[24], v6[25], v6[39]) = (0xff, 2, 0x12);
        let q300: &[u8] = &[0x81, 0, 0x61, 0x2c];
        let [plain, tagged, double] =
            [(0, 0), (100, 0), (100, 300)].map(|(outer, inner)| Tags { outer, inner });
        let takes = |packet: &[u8]| {
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
                let taken = is_accepted(&filter(tags), tci, &frame(left, packet));
                assert_eq!(taken, expected, "{tags:?}, {tci:?} {left:?}, {packet:?}");
            }
        };
        takes(&v4);
        takes(&v6);
        // TTL, protocol, the ends of the group's address; EtherType of the other family.
        for (packet, at) in [(&v4[..], [8, 9, 16, 19]), (&v6, [6, 7, 24, 39])] {
            for at in at {
                let mut packet = packet.to_vec();
                packet[at] ^= 1;
                assert!(!is_accepted(&filter(plain), None, &frame(&[], &packet)), "{at}");
            }
            assert!(!is_accepted(&filter(plain), None, &frame(&[], &packet[..16])), "truncated");
        }
    }
}
