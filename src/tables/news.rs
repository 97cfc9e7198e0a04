//! What small changes were about. A change of a route or of a group's member matters to sessions with an address there and
//! to no others; where many such changes come each second, to ask policy about every session for each of them would cost more
//! than the packets. So the addresses are noted, by their /24 (IPv6: /64 and /48), each with the newest generation that
//! changed something there. Different networks may share a note: then a session is asked about in vain.

use std::net::IpAddr;

/// Notes of a generation: 16 KiB, copied for each small change.
const NOTES: usize = 4096;
/// Networks that one change may be about; one of more is everybody's.
const MOST_NETWORKS: u64 = 256;

/// Keeps apart what is noted by different lengths.
const V4: u64 = 1 << 62;
const V6_64: u64 = 2 << 62;
const V6_48: u64 = 3 << 62;

/// What of a session a change may bear on.
#[derive(Clone, Copy, Debug)]
pub struct Bearing {
    /// Zone it comes from.
    pub from_zone: u8,
    /// Zone it goes to.
    pub to_zone: u8,
    /// Slot of its backend.
    pub backend: Option<u32>,
    /// All addresses of its packets in both directions, before and behind translation; `None`: it hangs on others as well.
    pub addresses: Option<[IpAddr; 4]>,
}

/// The notes.
#[derive(Clone)]
pub struct News {
    /// Lower halves of generations.
    notes: Box<[u32; NOTES]>,
    newest: u64,
}

impl Default for News {
    fn default() -> News {
        News { notes: Box::new([0; NOTES]), newest: 0 }
    }
}

impl News {
    /// With a change of something about addresses from the first to the last of each range; `None`: about so many that it is
    /// everybody's.
    pub fn with(&self, ranges: &[(IpAddr, IpAddr)], generation: u64) -> Option<News> {
        networks_of(ranges)?;
        let mut new = self.clone();
        for (first, last) in ranges {
            let (kind, networks) = networks(*first, *last)?;
            for network in networks {
                new.notes[place(kind, network)] = generation as u32;
            }
        }
        new.newest = generation;
        Some(new)
    }

    /// The newest generation.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The newest generation that was about one of these addresses; 0 if none was.
    #[inline]
    pub fn about(&self, addresses: &[IpAddr]) -> u64 {
        addresses.iter().fold(0, |newest, address| newest.max(self.about_one(*address)))
    }

    #[inline]
    fn about_one(&self, address: IpAddr) -> u64 {
        match address {
            IpAddr::V4(address) => self.noted(V4, u64::from(u32::from(address) >> 8)),
            IpAddr::V6(address) => {
                let upper = (u128::from(address) >> 64) as u64;
                self.noted(V6_64, upper).max(self.noted(V6_48, upper >> 16))
            }
        }
    }

    #[inline]
    fn noted(&self, kind: u64, network: u64) -> u64 {
        let behind = (self.newest as u32).wrapping_sub(self.notes[place(kind, network)]);
        self.newest.saturating_sub(behind.into())
    }
}

#[inline]
fn place(kind: u64, network: u64) -> usize {
    ((network ^ kind).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
}

/// Number of networks that ranges lie in; `None`: too many for a change that is about them alone.
pub fn networks_of(ranges: &[(IpAddr, IpAddr)]) -> Option<u64> {
    let sum = ranges.iter().try_fold(0, |sum: u64, (first, last)| {
        let (_, networks) = networks(*first, *last)?;
        Some(sum + (networks.end() - networks.start() + 1))
    });
    sum.filter(|sum| *sum <= MOST_NETWORKS)
}

/// The networks that a range lies in, by what they are noted.
fn networks(first: IpAddr, last: IpAddr) -> Option<(u64, std::ops::RangeInclusive<u64>)> {
    let few = |networks: &std::ops::RangeInclusive<u64>| networks.end() - networks.start() < MOST_NETWORKS;
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let networks = u64::from(u32::from(first) >> 8)..=u64::from(u32::from(last) >> 8);
            few(&networks).then_some((V4, networks))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let upper = |address| (u128::from(address) >> 64) as u64;
            let networks = upper(first)..=upper(last);
            if few(&networks) {
                return Some((V6_64, networks));
            }
            let networks = upper(first) >> 16..=upper(last) >> 16;
            few(&networks).then_some((V6_48, networks))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn after(changes: &[(&str, &str)]) -> Option<News> {
        let ranges: Vec<_> = changes.iter().map(|(first, last)| (ip(first), ip(last))).collect();
        News::default().with(&ranges, 7)
    }

    #[test]
    fn a_change_is_about_its_networks() {
        let news = after(&[("10.0.1.5", "10.0.1.5"), ("2001:db8:1::", "2001:db8:1:ffff::ffff")]).unwrap();
        for (address, about) in [
            ("10.0.1.5", 7),
            ("10.0.1.200", 7),
            ("10.0.2.5", 0),
            ("2001:db8:1:8::1", 7),
            ("2001:db8:2:8::1", 0),
            ("::10.0.1.5", 0),
        ] {
            assert_eq!(news.about(&[ip("192.0.2.1"), ip(address)]), about, "{address}");
        }
    }

    #[test]
    fn what_is_about_too_much_is_everybodys() {
        assert!(after(&[("10.0.0.0", "10.0.255.255")]).is_some());
        assert!(after(&[("10.0.0.0", "10.1.0.0")]).is_none());
        assert!(after(&[("0.0.0.0", "255.255.255.255")]).is_none());
        assert!(after(&[("2001:db8::", "2001:db8:ff:ffff:ffff:ffff:ffff:ffff")]).is_some());
        assert!(after(&[("2001:db8::", "2001:db8:100::")]).is_none());
        assert!(after(&[("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]).is_none());
        assert!(after(&[("10.0.0.0", "10.0.200.0"), ("10.1.0.0", "10.1.200.0")]).is_none(), "together");
    }

    fn address() -> impl Strategy<Value = u128> {
        // Near each other, and at both ends.
        prop_oneof![
            any::<u128>(),
            (0..4u128, 0..300u128).prop_map(|(site, net)| site << 80 | net << 60),
            Just(u128::MAX)
        ]
    }

    proptest! {
        /// Whatever lies in a range that was noted is known to, whatever was noted before and behind.
        #[test]
        fn nothing_is_missed(
            changes in proptest::collection::vec((address(), 0..1u128 << 82, any::<bool>()), 1..20),
            picks in proptest::collection::vec(any::<u64>(), 20),
            begin in prop_oneof![Just(0u64), Just(u64::from(u32::MAX) - 5), any::<u64>().prop_map(|n| n >> 8)],
        ) {
            let (mut news, mut noted) = (News::default(), Vec::new());
            for (number, ((first, len, is_v4), pick)) in changes.into_iter().zip(picks).enumerate() {
                let generation = begin + 1 + number as u64;
                let end = |at: u128| match is_v4 {
                    true => IpAddr::V4((at as u32).into()),
                    false => IpAddr::V6(at.into()),
                };
                let (first, last) = match is_v4 {
                    true => (first & 0xffff_ffff, ((first & 0xffff_ffff) + (len & 0x1_ffff)).min(0xffff_ffff)),
                    false => (first, first.saturating_add(len)),
                };
                if let Some(new) = news.with(&[(end(first), end(last))], generation) {
                    news = new;
                    let inside = first + u128::from(pick) % (last - first + 1);
                    noted.push((end(inside), generation));
                }
            }
            for (inside, generation) in noted {
                prop_assert!(news.about(&[inside]) >= generation, "{inside}");
            }
        }
    }
}
