//! SoftGate: a software gateway for bare-metal networks.
pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod gateway;
pub mod host;
pub mod io;
pub mod mem;
pub mod neighbours;
pub mod packet;
pub mod pipeline;
pub mod ratelimit;
pub mod replay;
pub mod tables;
pub mod telemetry;
pub mod time;
pub mod worker;
