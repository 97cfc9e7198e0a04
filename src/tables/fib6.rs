//! stub
use super::Leaf;
use ipnet::Ipv6Net;
use prefix_trie::PrefixMap;
/// stub
#[derive(Debug)]
pub struct Fib6(PrefixMap<Ipv6Net, Leaf>);
impl Fib6 {
    /// stub
    pub fn compile(routes: impl IntoIterator<Item = (Ipv6Net, Leaf)>) -> Fib6 {
        Fib6(routes.into_iter().collect())
    }
    /// stub
    pub fn with_changes(&self, rib: &PrefixMap<Ipv6Net, Leaf>, _changed: &[Ipv6Net]) -> Fib6 {
        Fib6(rib.clone())
    }
    /// stub
    pub fn find(&self, addr: u128) -> Leaf {
        self.0.get_lpm(&Ipv6Net::from(std::net::Ipv6Addr::from(addr))).map_or(0, |x| *x.1)
    }
    /// stub
    pub fn find_batch(&self, addrs: &[u128], out: &mut [Leaf]) {
        for (a, o) in addrs.iter().zip(out) {
            *o = self.find(*a)
        }
    }
}
