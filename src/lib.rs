//! SoftGate: a software gateway for bare-metal networks.
pub mod io;
pub mod mem;
pub mod packet;
pub mod tables;
