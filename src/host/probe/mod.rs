//! Health checks: probes of backends from the gateway's own addresses, and what follows from their results.
//!
//! Whoever wants to know gives a list of [`Target`]s and gets [`Event`]s. A target's verdict changes when as many
//! probes in a row say so as its check demands; until its first verdict it has none.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::HealthCheck;
use crate::time::Nanos;

/// What is to be checked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What events call it; unique among the targets.
    pub id: u32,
    /// Slot of the VRF from which the address is reached.
    pub vrf: u16,
    /// The backend.
    pub addr: IpAddr,
    /// The backend's port, which a check without a port of its own asks.
    pub port: u16,
    /// How.
    pub check: Arc<HealthCheck>,
}

/// What the checks say of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It works.
    Up,
    /// It does not.
    Down,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As expected.
    Ok,
    /// The connection was refused, or the port is closed.
    Refused,
    /// The connection was reset when it was open.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// A router or the backend says that it cannot be reached.
    Unreachable,
    /// The gateway has no route to it, or no address of its own on the way.
    NoRoute,
    /// Another status than expected.
    Status(u16),
    /// The body has not in it what was expected.
    Body,
    /// The answer begins otherwise than expected.
    Answer,
    /// The answer is none of the protocol.
    Protocol,
    /// The connection ended before the answer did.
    Closed,
    /// TLS failed, or the certificate is not right.
    Tls,
    /// More probes are under way than the gateway has room for.
    Busy,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Ok => "ok",
            Reason::Refused => "refused",
            Reason::Reset => "reset",
            Reason::Timeout => "timeout",
            Reason::Unreachable => "unreachable",
            Reason::NoRoute => "no route",
            Reason::Status(status) => return write!(f, "status {status}"),
            Reason::Body => "body",
            Reason::Answer => "answer",
            Reason::Protocol => "not the protocol",
            Reason::Closed => "closed",
            Reason::Tls => "tls",
            Reason::Busy => "too many probes",
        })
    }
}

/// A target's verdict has changed, or it has its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The target.
    pub id: u32,
    /// What it is now.
    pub verdict: Verdict,
    /// How the probe ended that decided it.
    pub reason: Reason,
    /// How long that probe took.
    pub latency: Duration,
    /// When it ended, by the gateway's clock.
    pub at: Nanos,
}
