//! stub
use super::Leaf;
use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;
/// stub
#[derive(Debug)]
pub struct Fib4(PrefixMap<Ipv4Net, Leaf>);
impl Fib4 {
    /// stub
    pub fn compile(routes: impl IntoIterator<Item = (Ipv4Net, Leaf)>) -> Fib4 {
        Fib4(routes.into_iter().collect())
    }
    /// stub
    pub fn with_changes(&self, rib: &PrefixMap<Ipv4Net, Leaf>, _changed: &[Ipv4Net]) -> Fib4 {
        Fib4(rib.clone())
    }
    /// stub
    pub fn find(&self, addr: u32) -> Leaf {
        self.0.get_lpm(&Ipv4Net::from(std::net::Ipv4Addr::from(addr))).map_or(0, |x| *x.1)
    }
    /// stub
    pub fn find_batch(&self, addrs: &[u32], out: &mut [Leaf]) {
        for (a, o) in addrs.iter().zip(out) {
            *o = self.find(*a)
        }
    }
}
