//! SoftGate: a software gateway for bare-metal networks.
pub mod cli;
pub mod io;
pub mod mem;
pub mod neighbours;
pub mod packet;
pub mod tables;
pub mod time;
