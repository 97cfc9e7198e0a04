//! The commands of `softgate`.

pub mod doctor;
