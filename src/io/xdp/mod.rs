//! AF_XDP ports: our own ring layer, our own XDP program, loaded by `aya`.
//!
//! From below: [`ring`] the shared rings, [`socket`] one socket with its four rings, [`port`] one
//! queue as a [`super::Port`], [`program`] the XDP program and its maps, [`device`] all of it for one
//! device. `afxdp_crate` is the second back end, behind the cargo feature `afxdp`.

mod assemble;
mod custody;
mod device;
mod error;
mod links;
mod netlink;
mod port;
mod program;
mod ring;
mod socket;

#[cfg(feature = "afxdp")]
mod afxdp_crate;

#[cfg(feature = "afxdp")]
pub use afxdp_crate::{AfxdpDevice, AfxdpPort};
pub use device::{Bound, LeftDevice, Mode, Refusal, RingSizes, XdpDevice};
pub use error::XdpError;
pub use port::XdpPort;
pub use program::{
    BridgedLink, MAX_PORTS, OwnRouters, ProgramCounters, QUEUES_PER_PORT, TunnelledSegment, XdpProgram,
};
