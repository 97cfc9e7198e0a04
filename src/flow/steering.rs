//! Steering: which worker of several a flow belongs to (DESIGN.md section 4).
//!
//! | flow | worker |
//! |---|---|
//! | known to the [`Directory`] | the one it names |
//! | to a port of a NAT address that is claimed | the one that has claimed its block |
//! | whose host has state: a source mapping, a limit of sessions | the host's, by hash |
//! | any other | the one that sees its first packet |
//!
//! Fragments show no ports: all of a datagram are gathered by one worker, which hears from the first of them whose they
//! are. A mapping that belongs to another worker than the session (hairpinning between two hosts) is borrowed.

use std::net::IpAddr;
use std::sync::Arc;

use super::directory::{Directory, Full, NotHeld};
use super::fragments::Datagram;
use super::nat::{self, Mapping};
use super::{Address, FlowTable, Tuple};
use crate::neighbours::addr_key;
use crate::packet::hash::{self, Key};
use crate::time::Nanos;

/// One worker's view of who has what.
#[derive(Clone, Debug)]
pub struct Steering {
    directory: Arc<Directory>,
    me: u8,
    workers: u8,
    key: Key,
    sweep_at: usize,
}

impl Steering {
    /// For worker `me` of `workers`, of which there are at least two.
    pub fn new(directory: Arc<Directory>, me: usize, workers: usize, key: Key) -> Steering {
        Steering { directory, me: me as u8, workers: workers as u8, key, sweep_at: 0 }
    }

    /// The worker itself.
    pub fn me(&self) -> u8 {
        self.me
    }

    /// How many workers there are.
    pub fn workers(&self) -> u8 {
        self.workers
    }

    /// What the directory knows a tuple by, and its reverse in the same VRF.
    fn key_of<A: Address>(&self, tuple: &Tuple<A>) -> u64 {
        let is_forward = (tuple.src, tuple.src_port) <= (tuple.dst, tuple.dst_port);
        A::hash(self.key, &if is_forward { *tuple } else { tuple.reversed(tuple.vrf) })
    }

    fn of_hash(&self, hash: u64) -> u8 {
        ((u128::from(hash) * u128::from(self.workers)) >> 64) as u8
    }

    /// The worker that keeps a host's state. IPv6: of a /64.
    pub fn of_host(&self, vrf: u16, host: IpAddr) -> u8 {
        self.of_hash(hash::address(self.key, nat::host_of(addr_key(host)), vrf.into()))
    }

    /// The worker that gathers a datagram's fragments: one for all of a pair of hosts, so that none overtakes another.
    pub fn of_datagram(&self, datagram: &Datagram) -> u8 {
        self.of_hash(hash::words_v6(self.key, datagram.src, datagram.dst, datagram.vrf.into()))
    }

    /// Fetches what [`Steering::find`] will look at.
    #[inline]
    pub fn prefetch<A: Address>(&self, tuple: &Tuple<A>) {
        #[cfg(not(loom))]
        self.directory.prefetch(self.key_of(tuple));
    }

    /// The worker that has the tuple.
    pub fn find<A: Address>(&self, tuple: &Tuple<A>) -> Option<u8> {
        self.directory.find(self.key_of(tuple))
    }

    /// The worker that has the tuple from now on: `wanted`, unless another has it.
    pub fn claim<A: Address>(&self, tuple: &Tuple<A>, wanted: u8, now: Nanos) -> Result<u8, Full> {
        self.directory.claim(self.key_of(tuple), wanted, now)
    }

    /// A session of ours begins with these tuples; none is ours if one of them is another's.
    pub fn hold<A: Address>(&self, tuples: [&Tuple<A>; 2], now: Nanos) -> Result<(), NotHeld> {
        let [one, other] = tuples.map(|tuple| self.key_of(tuple));
        let is_new = self.directory.hold(one, self.me, now)?;
        self.directory.hold(other, self.me, now).map(drop).inspect_err(|_| {
            // Otherwise it is another session's of ours.
            if is_new {
                self.directory.release(one, self.me);
            }
        })
    }

    /// A session with these tuples has ended, or has not come about: `table` does not have it any more.
    pub fn release<A: Address>(&self, tuples: [&Tuple<A>; 2], table: &FlowTable<A>) {
        for tuple in tuples {
            // Another session may have the other direction of the same addresses, with replies in another VRF.
            let is_used = table.find(tuple).is_some() || table.find(&tuple.reversed(tuple.vrf)).is_some();
            if !is_used {
                self.directory.release(self.key_of(tuple), self.me);
            }
        }
    }

    /// Nothing came of a packet with this tuple.
    pub fn disclaim<A: Address>(&self, tuple: &Tuple<A>) {
        self.directory.disclaim(self.key_of(tuple), self.me);
    }

    /// Forgets claims that nothing came of, in one of `parts` parts of the directory. For one worker of the node.
    pub fn sweep(&mut self, parts: usize, now: Nanos) {
        let words = self.directory.words() / parts + 1;
        self.sweep_at = self.directory.sweep(self.sweep_at, words, now);
    }
}

/// A request for a mapping that belongs to another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The worker that keeps the host's mappings.
    pub lender: u8,
    /// Slot of the pool: the same in all generations.
    pub pool: u16,
    /// VRF slot of the inside.
    pub vrf: u16,
    /// Inside address.
    pub src: IpAddr,
    /// Upper-layer protocol.
    pub upper: u8,
    /// Source port, or query identifier.
    pub port: u16,
    /// The other end: with the rest it names the flow.
    pub remote: (IpAddr, u16),
    /// The remote address that may answer, if only such ones may.
    pub peer: Option<IpAddr>,
}

/// A mapping that another worker keeps for a session of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loan {
    /// The worker that keeps it.
    pub lender: u8,
    /// Slot of its pool.
    pub pool: u16,
    /// VRF slot and port of the endpoint inside.
    pub inside: (u16, u16),
    /// The mapping.
    pub mapping: Mapping,
    /// The remote address that counts as its peer.
    pub peer: Option<IpAddr>,
}

/// Mappings borrowed, and what is under way of them.
#[derive(Debug, Default)]
pub struct Loans {
    /// By number.
    held: Vec<Option<Loan>>,
    free: Vec<u32>,
    /// Packets of the burst that need one, in their order.
    pub requests: Vec<Request>,
    /// For the packet that is decided next, if it still asks for that.
    pub given: Option<(Request, Loan)>,
    /// To be given back to their lenders.
    pub returns: Vec<Loan>,
}

impl Loans {
    /// Keeps a loan for a session: its number.
    pub fn keep(&mut self, loan: Loan) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            (self.held.len() - 1) as u32
        });
        self.held[number as usize] = Some(loan);
        number
    }

    /// The loan that a session keeps.
    pub fn get(&self, number: u32) -> Option<&Loan> {
        self.held.get(number as usize)?.as_ref()
    }

    /// The session has ended.
    pub fn end(&mut self, number: u32) {
        let loan = self.held[number as usize].take();
        self.returns.push(loan.unwrap_or_else(|| unreachable!("a session's loan is held")));
        self.free.push(number);
    }
}
