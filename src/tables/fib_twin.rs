//! The slow twin of both FIBs: a hash table per prefix length, asked from the longest to the shortest.
//! Also compiled into `benches/fib.rs`, which proves the tables equal before it times them.

use ahash::AHashMap;
use ipnet::{Ipv4Net, Ipv6Net};

/// Longest prefix match over left-aligned 128-bit addresses.
#[derive(Default)]
pub struct Twin {
    lengths: Vec<(u8, AHashMap<u128, u16>)>,
}

fn cut(addr: u128, len: u8) -> u128 {
    if len == 0 { 0 } else { addr >> (128 - len) << (128 - len) }
}

impl Twin {
    /// The twin of a v4 table.
    pub fn of_v4(routes: impl IntoIterator<Item = (Ipv4Net, u16)>) -> Twin {
        let mut twin = Twin::default();
        for (net, leaf) in routes {
            twin.insert(u128::from(u32::from(net.addr())) << 96, net.prefix_len(), leaf);
        }
        twin
    }

    /// The twin of a v6 table.
    pub fn of_v6(routes: impl IntoIterator<Item = (Ipv6Net, u16)>) -> Twin {
        let mut twin = Twin::default();
        for (net, leaf) in routes {
            twin.insert(u128::from(net.addr()), net.prefix_len(), leaf);
        }
        twin
    }

    fn insert(&mut self, addr: u128, len: u8, leaf: u16) {
        let at = self.lengths.partition_point(|(longer, _)| *longer > len);
        if self.lengths.get(at).is_none_or(|(found, _)| *found != len) {
            self.lengths.insert(at, (len, AHashMap::new()));
        }
        self.lengths[at].1.insert(cut(addr, len), leaf);
    }

    /// The leaf of the longest prefix around a v4 address; 0 if none.
    pub fn find_v4(&self, addr: u32) -> u16 {
        self.find_v6(u128::from(addr) << 96)
    }

    /// The leaf of the longest prefix around a v6 address; 0 if none.
    pub fn find_v6(&self, addr: u128) -> u16 {
        self.lengths.iter().find_map(|(len, table)| table.get(&cut(addr, *len)).copied()).unwrap_or(0)
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): the tests' and benchmarks' deterministic numbers.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The real BGP table's prefixes: from the file that SOFTGATE_BGP_TABLE names, else from the shared data
/// beside the repository; `None` if there is neither.
pub fn real_table() -> Option<(Vec<Ipv4Net>, Vec<Ipv6Net>)> {
    let file = std::env::var_os("SOFTGATE_BGP_TABLE").map_or_else(
        || {
            let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
            std::path::Path::new(&manifest).join("../shared/data/bgp-prefixes.txt.gz")
        },
        Into::into,
    );
    let out = std::process::Command::new("gzip").arg("-dc").arg(file).output().ok()?;
    if !out.status.success() {
        return None;
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for line in String::from_utf8(out.stdout).ok()?.lines() {
        match line.trim().parse::<ipnet::IpNet>() {
            Ok(ipnet::IpNet::V4(net)) => v4.push(net),
            Ok(ipnet::IpNet::V6(net)) => v6.push(net),
            Err(_) => {}
        }
    }
    Some((v4, v6))
}
