//! SYN cookies (RFC 4987 section 3.6): a SYN is answered with a sequence number that says all there is to remember, so
//! that nothing has to be. Whoever acknowledges it is where he says he is.
//!
//! ```text
//! 31 ......... 9 | 8 ........ 0
//! 23 bits of MAC   parity of the slot (1), MSS (3), window scale (4), SACK permitted (1), each XOR a pad
//! ```
//!
//! MAC and pad are SipHash-2-4 under the node's secret; the MAC covers tuple, VRF, the client's initial sequence number,
//! what is below it and the slot: 64 seconds of the clock. A cookie is good in its slot and the one after. The pad makes
//! it look as random as RFC 6528 wants initial sequence numbers. A guess is right once in 2^23.
//!
//! Timestamps (RFC 7323) are not offered: there is no room for the client's, and a connection does without.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Address, Tuple};
use crate::neighbours::addr_key;
use crate::packet::hash::Key;
use crate::packet::siphash;
use crate::time::Nanos;

/// Length of a slot, in seconds. Linux: one minute and the one after (`MAX_SYNCOOKIE_AGE`).
const SLOT_S: u64 = 64;
/// What an MSS is remembered as: the largest not above it. 536 and 1220: without the option (RFC 9293 section 3.7.1);
/// 1360 to 1460: tunnels and Ethernet; 8940: jumbo frames.
const SIZES: [u16; 8] = [64, 216, 536, 1220, 1360, 1440, 1460, 8940];
/// In the place of a scale: none. The largest is 14 (RFC 7323 section 2.3).
const NO_SCALE: u32 = 15;
const PARITY: u32 = 1 << 8;
const DATA: u32 = 0x1ff;

/// What a client has said of itself, as far as a cookie remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Maximum segment size.
    pub mss: u16,
    /// RFC 7323 section 2.
    pub scale: Option<u8>,
    /// RFC 2018 section 2.
    pub sack: bool,
}

/// The node's secret.
#[derive(Debug)]
pub struct Cookies([AtomicU64; 2]);

impl Cookies {
    /// With this secret.
    pub fn new(key: Key) -> Cookies {
        Cookies([AtomicU64::new(key.0), AtomicU64::new(key.1)])
    }

    /// Another secret, before the first cookie is made.
    pub fn set_secret(&self, key: Key) {
        self.0[0].store(key.0, Relaxed);
        self.0[1].store(key.1, Relaxed);
    }

    fn hash<A: Address>(&self, tuple: &Tuple<A>, isn: u32, rest: [u64; 2]) -> u64 {
        let [src, dst] = [tuple.src, tuple.dst].map(|addr| addr_key(addr.ip()));
        let ends = u64::from(tuple.src_port) << 32 | u64::from(tuple.dst_port) << 16 | u64::from(tuple.vrf);
        let key = Key(self.0[0].load(Relaxed), self.0[1].load(Relaxed));
        let half = |addr: u128| [(addr >> 64) as u64, addr as u64];
        let ([a, b], [c, d]) = (half(src), half(dst));
        siphash::of(key, &[a, b, c, d, ends, isn.into(), rest[0], rest[1]])
    }

    fn mac<A: Address>(&self, tuple: &Tuple<A>, isn: u32, data: u32, slot: u64) -> u32 {
        (self.hash(tuple, isn, [data.into(), slot]) >> 41) as u32
    }

    fn pad<A: Address>(&self, tuple: &Tuple<A>, isn: u32) -> u32 {
        self.hash(tuple, isn, [u64::MAX; 2]) as u32 & DATA
    }

    /// The sequence number that answers a SYN.
    pub fn make<A: Address>(&self, tuple: &Tuple<A>, isn: u32, offer: &Offer, now: Nanos) -> u32 {
        let slot = slot_of(now);
        let size = SIZES.iter().rposition(|size| *size <= offer.mss).unwrap_or(0) as u32;
        let scale = offer.scale.map_or(NO_SCALE, |scale| scale.min(14).into());
        let data = (slot as u32 & 1) << 8 | size << 5 | scale << 1 | u32::from(offer.sack);
        self.mac(tuple, isn, data, slot) << 9 | (data ^ self.pad(tuple, isn))
    }

    /// What the client had said whose SYN was answered with `cookie`; `None`: it is none of ours, or too old.
    pub fn read<A: Address>(&self, tuple: &Tuple<A>, isn: u32, cookie: u32, now: Nanos) -> Option<Offer> {
        let data = (cookie & DATA) ^ self.pad(tuple, isn);
        let now = slot_of(now);
        let is_old = (now as u32 & 1) != u32::from(data & PARITY != 0);
        let slot = now.checked_sub(is_old.into())?;
        if self.mac(tuple, isn, data, slot) != cookie >> 9 {
            return None;
        }
        let scale = data >> 1 & 0xf;
        Some(Offer {
            mss: SIZES[(data >> 5 & 7) as usize],
            scale: (scale != NO_SCALE).then_some(scale as u8),
            sack: data & 1 != 0,
        })
    }
}

fn slot_of(now: Nanos) -> u64 {
    now.0 / 1_000_000_000 / SLOT_S
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(src: u32, src_port: u16) -> Tuple<u32> {
        Tuple { src, dst: 0x0a00_0101, src_port, dst_port: 80, vrf: 3, protocol: 6, zero: 0 }
    }

    fn cookies() -> Cookies {
        Cookies::new(Key(1, 2))
    }

    proptest! {
        #[test]
        fn what_was_said_comes_back_for_two_slots(
            src: u32, port: u16, isn: u32, mss in 64u16.., scale in proptest::option::of(0u8..=14), sack: bool,
            at in 0u64..100_000, later in 0u64..=64,
        ) {
            let cookies = cookies();
            let (made, read) = (Nanos::from_secs(at), Nanos::from_secs(at + later));
            let cookie = cookies.make(&tuple(src, port), isn, &Offer { mss, scale, sack }, made);
            let offer = cookies.read(&tuple(src, port), isn, cookie, read).expect("a good cookie");
            prop_assert_eq!((offer.scale, offer.sack), (scale, sack));
            prop_assert!(offer.mss <= mss && SIZES.iter().all(|size| *size <= offer.mss || *size > mss));
        }

        #[test]
        fn any_other_is_refused(src: u32, port: u16, isn: u32, bit in 0u32..32, at in 200u64..100_000) {
            let cookies = cookies();
            let (now, offer) = (Nanos::from_secs(at), Offer { mss: 1460, scale: Some(7), sack: true });
            let who = tuple(src, port);
            let cookie = cookies.make(&who, isn, &offer, now);
            let read = |who: &Tuple<u32>, isn, cookie, now| cookies.read(who, isn, cookie, now);
            // A flipped bit has one chance in 2^23 each; 300 cases of 7 stay below 1 in 4,000.
            prop_assert_eq!(read(&who, isn, cookie ^ 1 << bit, now), None);
            prop_assert_eq!(read(&who, isn.wrapping_add(1), cookie, now), None);
            prop_assert_eq!(read(&tuple(src ^ 1, port), isn, cookie, now), None);
            prop_assert_eq!(read(&tuple(src, port ^ 1), isn, cookie, now), None);
            prop_assert_eq!(read(&Tuple { vrf: 4, ..who }, isn, cookie, now), None);
            prop_assert_eq!(read(&who, isn, cookie, Nanos::from_secs(at + 2 * SLOT_S)), None);
            let others = Cookies::new(Key(2, 1));
            prop_assert_eq!(others.read(&who, isn, cookie, now), None);
        }
    }
}
