//! What the gateway says as the querier of a bridge: IGMPv3 (RFC 3376) and MLDv2 (RFC 3810) queries, which hosts of older
//! versions understand as theirs.

use std::net::Ipv4Addr;

use crate::host::OwnBytes;
use crate::listeners::{ALL_HOSTS_V4, ALL_HOSTS_V6, Group};
use crate::packet::checksum;
use crate::packet::view::{ethertype, protocol};
use crate::tables::bridge::Bridge;
use crate::tables::{NO_INTERFACE, Tables};

/// RFC 3376 section 8.3, RFC 3810 section 9.3: 10 seconds to answer what is asked of all.
const RESPONSE_TENTHS: u8 = 100;
/// RFC 3376 section 8.8: one second to answer who is left.
const LAST_RESPONSE_TENTHS: u8 = 10;
/// RFC 3376 section 8.1: a message may be lost.
const ROBUSTNESS: u8 = 2;
/// RFC 2113: routers shall look at it.
const ROUTER_ALERT: [u8; 4] = [0x94, 4, 0, 0];
/// RFC 2711, and padding.
const ROUTER_ALERT_V6: [u8; 8] = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
/// RFC 3376 section 4: precedence "internetwork control".
const TOS: u8 = 0xc0;

/// The address it asks from; 0, that of nobody, where the bridge has no interface with one (RFC 4541 section 2.1.1).
pub fn source_v4(bridge: &Bridge, tables: &Tables) -> u32 {
    let own = (bridge.interface != NO_INTERFACE).then(|| tables.interface(bridge.interface));
    own.and_then(|own| own.info.v4.first()).map_or(0, |(addr, _)| (*addr).into())
}

/// Likewise; MLD has to have one (RFC 2710 section 3).
pub fn source_v6(bridge: &Bridge, tables: &Tables) -> Option<u128> {
    let own = (bridge.interface != NO_INTERFACE).then(|| tables.interface(bridge.interface))?;
    own.info.link_local.map(u128::from)
}

/// The time that a code of IGMPv3 stands for, in tenths of a second (RFC 3376 section 4.1.1).
pub fn time_v4(code: u8) -> u32 {
    if code < 128 { code.into() } else { u32::from(code & 15 | 16) << (u32::from(code >> 4 & 7) + 3) }
}

/// The time that a code of MLDv2 stands for, in milliseconds (RFC 3810 section 5.1.3).
pub fn time_v6(code: u16) -> u32 {
    if code < 0x8000 {
        code.into()
    } else {
        u32::from(code & 0xfff | 0x1000) << (u32::from(code >> 12 & 7) + 3)
    }
}

/// The code of a querier's interval (RFC 3376 section 4.1.7): the longest time that is no longer.
fn interval_code(seconds: u16) -> u8 {
    (0..=255).rev().find(|code| time_v4(*code) <= seconds.into()).unwrap_or(0)
}

/// A query for a group, or for all groups: [`Group::ROUTER`]. Its destination's MAC address, EtherType and packet.
pub fn query(
    bridge: &Bridge,
    group: Group,
    interval_s: u16,
    tables: &Tables,
) -> Option<(u64, u16, OwnBytes)> {
    let tenths = if group.is_router() { RESPONSE_TENTHS } else { LAST_RESPONSE_TENTHS };
    let mut bytes = OwnBytes::new();
    match group {
        Group::V4(group) => {
            let dst = if group == 0 { ALL_HOSTS_V4 } else { group };
            let mut message = [0; 12];
            (message[0], message[1]) = (0x11, tenths);
            message[4..8].copy_from_slice(&group.to_be_bytes());
            (message[8], message[9]) = (ROBUSTNESS, interval_code(interval_s));
            let sum = checksum::of(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut header = [0; 24];
            header[..12].copy_from_slice(&[0x46, TOS, 0, 36, 0, 0, 0x40, 0, 1, protocol::IGMP, 0, 0]);
            header[12..16].copy_from_slice(&Ipv4Addr::from(source_v4(bridge, tables)).octets());
            header[16..20].copy_from_slice(&dst.to_be_bytes());
            header[20..].copy_from_slice(&ROUTER_ALERT);
            let sum = checksum::of(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(header);
            bytes.extend(message);
            Some((Group::V4(dst).mac(), ethertype::IPV4, bytes))
        }
        Group::V6(group) => {
            let src = source_v6(bridge, tables)?;
            let dst = if group == 0 { ALL_HOSTS_V6 } else { group };
            let mut message = [0; 28];
            message[0] = 130;
            message[4..6].copy_from_slice(&(u16::from(tenths) * 100).to_be_bytes());
            message[8..24].copy_from_slice(&group.to_be_bytes());
            (message[24], message[25]) = (ROBUSTNESS, interval_code(interval_s));
            let pseudo =
                checksum::pseudo_v6(&src.to_be_bytes(), &dst.to_be_bytes(), protocol::ICMPV6, message.len());
            let sum = !checksum::fold(checksum::add(pseudo, &message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            bytes.extend([0x60, 0, 0, 0, 0, 36, protocol::HOP_BY_HOP, 1]);
            bytes.extend(src.to_be_bytes());
            bytes.extend(dst.to_be_bytes());
            bytes.extend(ROUTER_ALERT_V6);
            bytes.extend(message);
            Some((Group::V6(dst).mac(), ethertype::IPV6, bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_for_the_times_of_the_rfcs() {
        // RFC 3376 section 4.1.1: (mant | 0x10) << (exp + 3).
        for (code, tenths) in [(0, 0), (127, 127), (0x80, 128), (0x8f, 248), (0x90, 256), (0xff, 31_744)] {
            assert_eq!(time_v4(code), tenths, "{code:#x}");
        }
        // RFC 3810 section 5.1.3: (mant | 0x1000) << (exp + 3).
        for (code, millis) in [(0, 0), (10_000, 10_000), (0x8000, 32_768), (0xffff, 8_387_584)] {
            assert_eq!(time_v6(code), millis, "{code:#x}");
        }
    }

    #[test]
    fn an_interval_is_told_as_no_longer_than_it_is() {
        for seconds in 0..=3600 {
            let told = time_v4(interval_code(seconds));
            assert!(told <= seconds.into() && u32::from(seconds) - told <= told / 16, "{seconds} as {told}");
        }
    }
}
