//! The command line: one file per command.

pub mod bench;
pub mod doctor;
pub mod replay;
pub mod run;

use std::path::PathBuf;

/// Parses `PORT=FILE`.
fn parse_input(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((port, file)) if !port.is_empty() && !file.is_empty() => Ok((port.to_owned(), file.into())),
        _ => Err(String::from("expected PORT=FILE.pcap")),
    }
}
