//! SoftGate: a software gateway for bare-metal networks.
pub mod mem;
pub mod tables;
