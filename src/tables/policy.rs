//! Stand-in.
#![allow(missing_docs)]
use std::net::{IpAddr, Ipv4Addr};
use crate::pipeline::Question;
pub const NO_ZONE: u8 = 0;
pub const SELF: u8 = 255;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action { Allow, Deny, Reject }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling { pub action: Action, pub rule: u16, pub log: bool }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationNat { pub addr: IpAddr, pub port: Option<u16>, pub vrf: u16, pub rule: u16 }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNat { None, Static { addr: IpAddr, rule: u16 }, Pool { pool: u16, rule: u16 } }
pub struct Policy { pub timers: crate::flow::Timers, pub loose_tcp: bool, pub open_mappings: bool, pub pools: Vec<crate::flow::nat::Pool> }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound { pub addr: IpAddr, pub port: u16, pub vrf: u16, pub allowed: bool }
impl Policy {
    pub fn stub(c: &crate::flow::nat::BlockClaims) -> Policy { let a = 0x64400101u32; let spec = crate::flow::nat::PoolSpec::new(0, vec![crate::flow::nat::AddressRange{first: a.into(), last: (a + 511).into()}]); let pool = crate::flow::nat::Pool::compile(&spec, c).unwrap(); Policy { timers: crate::flow::Timers { tcp: Default::default(), udp_s: 300, udp_unreplied_s: 30, icmp_s: 60, other_s: 600 }, loose_tcp: false, open_mappings: true, pools: vec![pool] } }
    pub fn permit(&self, _q: &Question, _f: u8, _t: u8, _e: u16) -> Ruling { Ruling { action: Action::Allow, rule: 0, log: false } }
    pub fn destination(&self, _vrf: u16, _src: IpAddr, _dst: IpAddr, _p: u8, _port: u16) -> Option<DestinationNat> { None }
    pub fn source(&self, q: &Question, f: u8, t: u8, _e: u16) -> SourceNat { if f != t && q.src.is_ipv4() && !self.pools.is_empty() && f == 1 { SourceNat::Pool { pool: 0, rule: 1 } } else { SourceNat::None } }
    pub fn pool_of(&self, _vrf: u16, _addr: Ipv4Addr) -> Option<u16> { None }
}
