//! The rules by which a native attach is refused, checked before it is tried.
//!
//! veth is the strict one (drivers/net/veth.c, `veth_xdp_set`): every transmit queue of the peer needs
//! a receive queue here, and the peer's MTU must fit one page unless the program takes frames in parts.

/// Largest MTU of a veth peer for a program without multi-buffer: a page of 4096, less 256 of XDP
/// headroom, 14 of Ethernet header and 320 of skb_shared_info. Measured: 3506 attaches, 3507 does not.
pub const VETH_SINGLE_BUFFER_MTU: u32 = 3506;

/// Why a native attach will be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachObstacle {
    /// The kernel says `ENOSPC`.
    #[error("the peer sends on {peer_tx} queues and this end receives on {our_rx}")]
    PeerQueues {
        /// Our receive queues in use.
        our_rx: u32,
        /// The peer's transmit queues.
        peer_tx: u32,
    },
    /// The kernel says `ERANGE`.
    #[error("MTU {mtu_bytes} needs a multi-buffer program; without, {VETH_SINGLE_BUFFER_MTU} is the limit")]
    PeerMtu {
        /// The peer's MTU.
        mtu_bytes: u32,
    },
}

impl AttachObstacle {
    /// What to type to mend it.
    pub fn mend(&self, device: &str) -> String {
        match self {
            Self::PeerQueues { our_rx, peer_tx } => format!(
                "ethtool -L {device} rx {peer_tx}    (or on the other end: ethtool -L PEER tx {our_rx})"
            ),
            Self::PeerMtu { .. } => {
                format!(
                    "ip link set {device} mtu {VETH_SINGLE_BUFFER_MTU}    (and the same on the other end)"
                )
            }
        }
    }
}

/// The other end of a veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VethPeer {
    /// Its transmit queues.
    pub tx_queues: u32,
    /// The number is that of the queues in use; else of those allocated (the peer is in another
    /// namespace, where its driver cannot be asked), and the true one may be lower.
    pub exact: bool,
    /// Its MTU.
    pub mtu_bytes: u32,
}

/// What stands against a native attach on a veth with `our_rx` receive queues.
pub fn veth_obstacle(our_rx: u32, peer: &VethPeer, multi_buffer: bool) -> Option<AttachObstacle> {
    if !multi_buffer && peer.mtu_bytes > VETH_SINGLE_BUFFER_MTU {
        return Some(AttachObstacle::PeerMtu { mtu_bytes: peer.mtu_bytes });
    }
    (peer.tx_queues > our_rx).then_some(AttachObstacle::PeerQueues { our_rx, peer_tx: peer.tx_queues })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(tx_queues: u32, mtu_bytes: u32) -> VethPeer {
        VethPeer { tx_queues, exact: true, mtu_bytes }
    }

    #[test]
    fn the_peer_may_not_send_on_more_queues_than_we_receive_on() {
        assert_eq!(veth_obstacle(4, &peer(4, 1500), true), None);
        assert_eq!(veth_obstacle(4, &peer(1, 1500), true), None);
        let obstacle = veth_obstacle(2, &peer(4, 1500), true).unwrap();
        assert_eq!(obstacle, AttachObstacle::PeerQueues { our_rx: 2, peer_tx: 4 });
        assert_eq!(
            obstacle.mend("eth1"),
            "ethtool -L eth1 rx 4    (or on the other end: ethtool -L PEER tx 2)"
        );
    }

    #[test]
    fn a_large_mtu_needs_multi_buffer() {
        assert_eq!(veth_obstacle(1, &peer(1, 3506), false), None);
        assert_eq!(
            veth_obstacle(1, &peer(1, 3507), false),
            Some(AttachObstacle::PeerMtu { mtu_bytes: 3507 })
        );
        assert_eq!(veth_obstacle(1, &peer(1, 9000), true), None);
    }
}
