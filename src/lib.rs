//! SoftGate: a software gateway for bare-metal networks.
pub mod host;
pub mod io;
pub mod mem;
pub mod neighbours;
pub mod packet;
pub mod pipeline;
pub mod ratelimit;
pub mod tables;
pub mod telemetry;
pub mod time;
pub mod worker;
