//! Messages that anybody may send, against twins that a reader believes at sight.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{MAX_MESSAGE_BYTES, v4, v6};
use crate::packet::DropReason;
use crate::ratelimit::Rate;
use crate::tables::relay::{Option82, Relay, RelaySpec};

fn relay(option82: Option82, is_own_source: bool, from_relays: bool, is_v4: bool) -> Relay {
    let [source, link]: [IpAddr; 2] = match (is_v4, is_own_source) {
        (true, true) => [Ipv4Addr::new(10, 1, 0, 1).into(); 2],
        (true, false) => [Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 1, 0, 1).into()],
        (false, _) => [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(); 2],
    };
    let spec = RelaySpec {
        vrf: String::from("any"),
        source,
        link,
        is_own_source,
        servers: vec![],
        id: b"lan".to_vec(),
        remote_id: None,
        option82,
        server_id_override: false,
        from_relays,
        max_hops: 4,
        limit: Rate { per_s: 1, burst: 1 },
    };
    Relay::new(&spec, 1, 0)
}

/// The slow twin: the options of a DHCPv4 message as a list, if they are whole.
fn options(message: &[u8]) -> Option<Vec<(u8, Vec<u8>)>> {
    let (mut at, mut found) = (240, Vec::new());
    while at < message.len() && message[at] != 255 {
        if message[at] == 0 {
            at += 1;
            continue;
        }
        let len = usize::from(*message.get(at + 1)?);
        found.push((message[at], message.get(at + 2..at + 2 + len)?.to_vec()));
        at += 2 + len;
    }
    Some(found)
}

/// A DHCPv4 message with these options, of which some may be cut off or say more than there is.
fn message_v4() -> impl Strategy<Value = Vec<u8>> {
    let option = (
        prop_oneof![Just(82u8), Just(52), Just(0), Just(53), any::<u8>()],
        proptest::collection::vec(any::<u8>(), 0..40),
    );
    let fixed = proptest::collection::vec(any::<u8>(), 240..=240);
    let parts =
        (fixed, proptest::collection::vec(option, 0..8), 0..400usize, any::<bool>(), 0..4u8, any::<bool>());
    parts.prop_map(|(mut message, options, padding, ends, hops, is_first)| {
        message[..4].copy_from_slice(&[1, 1, 6, hops]);
        message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        if is_first {
            message[24..28].fill(0);
        }
        for (code, value) in options {
            // Overloading as it is meant, most of the time.
            let value = if code == 52 { vec![value.first().copied().unwrap_or(0) & 3] } else { value };
            message.push(code);
            if code != 0 && code != 255 {
                message.push(value.len() as u8);
                message.extend(value);
            }
        }
        if ends {
            message.push(255);
        }
        message.extend(vec![0; padding]);
        message
    })
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at_without_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..1600),
        kind in 0..16u8,
        limit in 0..1600usize,
    ) {
        for op in [None, Some(1), Some(2), Some(kind)] {
            let mut bytes = bytes.clone();
            if let (Some(op), Some(first)) = (op, bytes.first_mut()) {
                *first = op;
            }
            if let Some(cookie) = bytes.get_mut(236..240) {
                cookie.copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
            }
            for option82 in [Option82::Off, Option82::Drop, Option82::Replace, Option82::Append, Option82::Keep] {
                for is_own in [true, false] {
                    let relay = relay(option82, is_own, true, true);
                    let _ = v4::request(&bytes, &relay, |_| false, limit);
                    if let Ok(reply) = v4::read_reply(&bytes) {
                        let _ = (reply.client(), reply.for_client(&relay));
                    }
                }
            }
            let _ = v6::forward(&bytes, Ipv6Addr::LOCALHOST, [2; 6], &relay(Option82::Off, true, true, false));
            let _ = v6::forward(&bytes, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9), [2; 6], &relay(Option82::Off, true, true, false));
            let _ = v6::read_reply(&bytes);
        }
    }

    #[test]
    fn a_request_keeps_what_is_not_ours(message in message_v4(), which in 0..4usize) {
        let option82 = [Option82::Drop, Option82::Replace, Option82::Append, Option82::Keep][which];
        let relay = relay(option82, true, false, true);
        let out = v4::request(&message, &relay, |_| false, MAX_MESSAGE_BYTES);
        let is_first = message[24..28] == [0; 4];
        let Some(before) = options(&message).filter(|_| is_first) else {
            prop_assert!(out.is_err());
            return Ok(());
        };
        let Ok(out) = out else {
            prop_assert!(matches!(
                out,
                Err(DropReason::DhcpOption82 | DropReason::DhcpInvalid | DropReason::DhcpTooLong)
            ));
            return Ok(());
        };
        prop_assert!(out.len() >= message.len().max(300));
        prop_assert_eq!(&out[24..28], &[10, 1, 0, 1]);
        prop_assert_eq!(out[3], message[3] + 1);
        prop_assert_eq!(&out[4..24], &message[4..24]);
        let after = options(&out).expect("what we make is whole");
        let is_agent = |option: &&(u8, Vec<u8>)| option.0 == 82;
        let others = |all: &[(u8, Vec<u8>)]| -> Vec<_> { all.iter().filter(|o| !is_agent(o)).cloned().collect() };
        prop_assert_eq!(others(&before), others(&after));
        let theirs: Vec<u8> = before.iter().filter(is_agent).flat_map(|(_, value)| value.clone()).collect();
        let had_one = before.iter().any(|option| option.0 == 82);
        let ours = [1, 3, b'l', b'a', b'n'].to_vec();
        let agents: Vec<Vec<u8>> = after.iter().filter(is_agent).map(|(_, value)| value.clone()).collect();
        match option82 {
            Option82::Drop => prop_assert!(!had_one && agents == [ours]),
            Option82::Replace => prop_assert_eq!(agents, [ours]),
            Option82::Append => prop_assert_eq!(agents, [[theirs, ours].concat()]),
            _ if had_one => prop_assert_eq!(before, after),
            // Hidden in another field it stays there.
            _ => prop_assert!(agents.is_empty() || agents == [ours]),
        }
    }

    #[test]
    fn what_a_server_echoes_is_taken_out_again(message in message_v4(), which in 0..3usize) {
        let option82 = [Option82::Replace, Option82::Append, Option82::Keep][which];
        let relay = relay(option82, true, false, true);
        let Ok(mut asked) = v4::request(&message, &relay, |_| false, MAX_MESSAGE_BYTES) else { return Ok(()) };
        asked[0] = 2;
        let reply = v4::read_reply(&asked).expect("a server that says what it heard");
        let heard = reply.for_client(&relay).expect("it was shorter before");
        let of = |all: &[u8]| -> Vec<(u8, Vec<u8>)> { options(all).expect("whole") };
        let theirs = |all: &[(u8, Vec<u8>)]| -> Vec<u8> {
            all.iter().filter(|option| option.0 == 82).flat_map(|(_, value)| value.clone()).collect()
        };
        let expected = if option82 == Option82::Replace { Vec::new() } else { theirs(&of(&message)) };
        let ours = [1, 3, b'l', b'a', b'n'];
        // Whoever says as a client what we say loses it.
        if !expected.ends_with(&ours) {
            prop_assert_eq!(theirs(&of(&heard)), expected);
        }
    }

    #[test]
    fn what_goes_into_a_relay_forward_comes_out_of_a_relay_reply(
        body in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..10),
        peer in any::<u64>(),
    ) {
        let mut message = vec![1, 2, 3, 4];
        for (code, value) in &body {
            message.extend(code.to_be_bytes());
            message.extend((value.len() as u16).to_be_bytes());
            message.extend(value);
        }
        let peer = Ipv6Addr::from(0xfe80u128 << 112 | u128::from(peer));
        let relay = relay(Option82::Off, true, false, false);
        let mut out = v6::forward(&message, peer, [2, 0, 0, 0, 0, 9], &relay).expect("it is whole");
        prop_assert!(v6::read_reply(&out).is_err(), "no server says that");
        out[0] = 13;
        prop_assert!(v6::read_reply(&out).is_err(), "clients say what is inside");
        let inside = out.len() - message.len();
        out[inside] = 7;
        let reply = v6::read_reply(&out).expect("a server that says what it heard");
        message[0] = 7;
        prop_assert_eq!(reply.message, &message[..]);
        prop_assert_eq!((reply.peer, reply.interface_id), (peer, Some(&b"lan"[..])));
        prop_assert!(!reply.is_to_relay);
    }
}
