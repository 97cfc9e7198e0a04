//! What two nodes must have alike, as sums that can be compared: sessions that the peer knows of, in slices by a hash of
//! their names.
//!
//! A sum is over what does not change while a session lives: its name, how it leaves and by which VRF replies come, and
//! whether it holds ports of pools. Counts, times and where a connection stands are each node's own; egress, rule and
//! backend follow from its config. The order of sessions and what numbers slots have makes no difference.

use super::{Address, FlowTable, Handle, flow_flags};
use crate::neighbours::addr_key;
use crate::packet::hash::{Key, words_v6};

/// Slices: enough that one in which nothing begins and nothing ends for some seconds is not rare. With a thousand sessions
/// a second that begin, and as many that end, it is three of four in ten seconds.
pub const SLICES: usize = 1 << 16;

/// A session's part in the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its slice.
    pub slice: u16,
    /// What it adds to the slice's sum; sums wrap around.
    pub sum: u64,
}

impl Digest {
    /// Of a session in use; `None`: the peer does not know of it. `key` is the pair's; `mark` says what both nodes know a VRF
    /// by ([`crate::tables::Vrf::mark`]).
    pub fn of<A: Address>(
        table: &FlowTable<A>,
        session: u32,
        key: Key,
        mark: impl Fn(u16) -> u64,
    ) -> Option<Digest> {
        let [forward, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
        if forward.flags & (flow_flags::TOLD | flow_flags::FROM_PEER) == 0 {
            return None;
        }
        let ports = |src: u16, dst: u16| u64::from(src) << 16 | u64::from(dst);
        let addr = |addr: A| addr_key(addr.ip());
        let tuple = &forward.tuple;
        let tail = u64::from(A::CROSSES) << 40
            | u64::from(tuple.protocol) << 32
            | ports(tuple.src_port, tuple.dst_port);
        let name = words_v6(key, addr(tuple.src), addr(tuple.dst), tail ^ mark(tuple.vrf));
        let record = table.record(session);
        let holds = u64::from(record.mapping != 0) << 32 | u64::from(record.bound != 0) << 33;
        let tail = holds | ports(forward.new_src_port, forward.new_dst_port);
        let sum = words_v6(
            Key(name, key.1),
            addr(forward.new_src),
            addr(forward.new_dst),
            tail ^ mark(reply.tuple.vrf),
        );
        Some(Digest { slice: (name >> 48) as u16, sum })
    }
}

/// Most slices that are repaired at once.
pub const MOST: usize = 64;

/// A few slices, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    len: u8,
    of: [u16; MOST],
}

impl Slices {
    /// As many of these as fit.
    pub fn of(slices: impl Iterator<Item = u16>) -> Slices {
        let mut of = [0; MOST];
        let len = of.iter_mut().zip(slices).map(|(place, slice)| *place = slice).count();
        of[..len].sort_unstable();
        Slices { len: len as u8, of }
    }

    /// All of them.
    pub fn all(&self) -> &[u16] {
        &self.of[..usize::from(self.len)]
    }

    /// True if it is one of them.
    pub fn has(&self, slice: u16) -> bool {
        self.all().binary_search(&slice).is_ok()
    }
}
