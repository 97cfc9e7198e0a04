//! SoftGate: a software gateway for bare-metal networks.
pub mod cli;
pub mod config;
pub mod control;
pub mod io;
pub mod mem;
pub mod tables;
