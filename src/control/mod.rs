//! The control socket: JSON-RPC 2.0, one request or reply per line, over a Unix socket.
//!
//! [`Server`] runs on the control thread and owns everything a client can do to us: framing, limits,
//! transactions, the audit line. What a request *means* is a [`Backend`]'s business. [`Client`] is the
//! other end. `control` never touches a packet.
//!
//! ```text
//! -> {"jsonrpc":"2.0","id":1,"method":"begin"}
//! <- {"jsonrpc":"2.0","id":1,"result":{"staged":0,"staged_bytes":0}}
//! -> {"jsonrpc":"2.0","id":2,"method":"route.add","params":{"routes":[["192.0.2.0/24","198.51.100.1"]]}}
//! <- {"jsonrpc":"2.0","id":2,"result":{"staged":1,"staged_bytes":112}}
//! -> {"jsonrpc":"2.0","id":3,"method":"commit"}
//! <- {"jsonrpc":"2.0","id":3,"result":{"generation":7,"applied_us":912,"changed":1,"late":false,"warnings":[]}}
//! ```
//!
//! What requests and answers look like derives `JsonSchema` beside serde's traits: `softgate http` describes them by it.
//!
//! A transaction belongs to its connection: closing it aborts. Outside a transaction each changing
//! request is a transaction of its own.

mod audit;
mod base64;
mod bridges;
mod client;
mod deterministic;
mod explain;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod ha;
mod inspect;
mod line;
mod preview;
mod reply;
mod request;
mod revision_requests;
pub mod revisions;
mod rights;
mod rpc;
mod server;
mod services;
mod session;
mod terms;
#[cfg(test)]
mod tests;
mod upgrade;

pub use bridges::{
    BridgeChanged, BridgeEntry, ListenerEntry, MacEntry, MacPage, MacsAdded, MacsQuery, MacsRemoved,
    MemberEntry, MemberOpened,
};
pub use client::{Client, ClientError, RouteStream};
pub use deterministic::{HostQuery, NatHost, PortQuery, SharedPool};
pub use explain::{
    ExplainQuery, ExplainStep, Explained, ExplainedFrame, Explanation, Outcome, ReachQuery, Reachable,
    Reached,
};
pub use ha::{
    AdvertErrors, BfdEntry, BfdList, DrainEntry, DrainQuery, DriftEntry, HaList, KeptEntry, PairEntry,
    TrackEntry, VirtualRouterEntry, WitnessEntry,
};
pub use inspect::{
    ClearQuery, Cleared, GroupEntry, Halves, MOST, MappingEntry, MappingPage, MappingsQuery, NatRuleEntry,
    PoolEntry, Refusal, RuleEntry, RuleList, SessionEntry, SessionFilter, SessionPage, SessionsQuery,
    TemporaryMember,
};
pub use preview::{FateCount, PreviewExample, PreviewQuery, PreviewStage, Previewed, SessionFate};
pub use reply::{
    Changed, Convergence, ConvergenceQuery, Counter, DhcpRelayEntry, DropEntry, DropsExport, InterfaceStatus,
    LinkState, LostMessages, NeighbourEntry, NeighbourState, PairCommit, PairStage, PortStatus, Reply,
    RouteEntry, RouteKind, RoutePage, RouteSource, Staged, Version, ViaEntry, WorkerStatus,
};
pub use request::{GroupMembers, NeighbourKey, Patch, Request, RouteKey, RoutesQuery, RuleAddition};
pub use revision_requests::{DocumentPiece, RevisionEntry, RevisionList, RevisionQuery};
pub use rights::{Belongs, Object};
pub use rpc::{Fault, FaultKind};
#[cfg(all(feature = "remote", not(fuzzing)))]
pub(crate) use server::listen_alone;
pub use server::{Limits, Server};
pub use services::{
    BackendChange, BackendEntry, BackendsRemoved, ServiceBackends, ServiceEntry, ServiceList, ServicesQuery,
};
pub use upgrade::{UpgradeEntry, UpgradePhase, UpgradeQuery};

pub use terms::{Asked, Terms};

use crate::config::Role;

/// What stands behind the socket.
pub trait Backend {
    /// Answers one request completely: a change has been applied (no worker uses the old tables) or
    /// nothing has changed.
    ///
    /// Of the enum only these arrive: `Show*`, `Nat*`, `ClearSessions`, `DropsExport`, `Explain`, `Reach`, `Preview` (with
    /// `text` and `files` filled in), `Apply` (with
    /// `text` and `files` filled in), `Commit` (with `patches`), `Rollback` and `Confirm`. The session answers the rest.
    fn execute(&mut self, request: Request) -> Result<Reply, Fault>;

    /// The revision of the config in force; 0: there is none.
    fn revision(&self) -> u64 {
        0
    }

    /// The user whose commit waits to be confirmed.
    fn waiting_for(&self) -> Option<u32> {
        None
    }

    /// Who may ask for what; without any role everybody for everything.
    fn roles(&self) -> Vec<Role> {
        Vec::new()
    }

    /// Whom something belongs to that a request names; what there is not, to everybody.
    fn belongs(&self, _object: Object<'_>) -> Belongs {
        Belongs::default()
    }
}
