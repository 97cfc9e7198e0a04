//! Immutable lookup tables, compiled from the config; no lock, no clock.
