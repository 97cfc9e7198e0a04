//! What another config would do to the live sessions.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::sessions::endpoint;
use crate::cli::{Trouble, connect, print, print_json, read};
use crate::config::{self, Fate};
use crate::control::{
    ClientError, FateCount, FaultKind, PreviewExample, PreviewStage, Previewed, SessionEntry, SessionFate,
};

/// How long another's preview, or a gateway that changes, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// When it is asked again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often people are told how far it is.
const TELL: Duration = Duration::from_secs(2);

pub(super) fn run(file: &Path, asked: (u32, Fate), json: bool, socket: &Path) -> Result<(), Trouble> {
    let text = read(file)?;
    let mut files = Vec::new();
    for path in config::route_file_paths(&text) {
        let content = read(&config::beside(file, &path))?;
        files.push((path, content));
    }
    let name = file.display().to_string();
    let begun = Instant::now();
    let previewed = loop {
        match connect(socket)?.preview(&name, &text, &files, asked, progress()) {
            // Somebody else looks, or somebody has just changed something.
            Err(ClientError::Fault(fault))
                if matches!(fault.kind, FaultKind::Limit | FaultKind::Conflict)
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(AGAIN);
            }
            done => break done?,
        }
    };
    if json { print_json(&previewed) } else { print(&text_of(&previewed)) }
}

/// Tells people at a terminal how far a long one is.
fn progress() -> impl FnMut(&Previewed) {
    let mut told = Instant::now();
    move |so_far| {
        if told.elapsed() >= TELL && std::io::stderr().is_terminal() {
            told = Instant::now();
            match so_far.stage {
                PreviewStage::Reading | PreviewStage::Compiling => eprintln!("the config is being compiled"),
                PreviewStage::Judging | PreviewStage::Done => {
                    eprintln!("{} sessions so far", so_far.sessions)
                }
            }
        }
    }
}

/// What a fate is, of so many sessions.
fn says(fate: SessionFate) -> &'static str {
    match fate {
        SessionFate::Dropped => "would be dropped",
        SessionFate::MappingLost => "would lose their mapping, and end",
        SessionFate::BackendChanged => "would change backend",
        SessionFate::EgressChanged => "would leave by another interface or next hop",
        SessionFate::RuleChanged => "would go on under another rule",
        SessionFate::Drains => "would go on with an address or backend that takes no new ones",
        SessionFate::Stays => "stay as they are",
        SessionFate::Kept => "would go on in spite of a rule",
        SessionFate::Ending => "are about to end by what was committed before",
    }
}

fn text_of(previewed: &Previewed) -> String {
    let mut text = String::new();
    for FateCount { fate, sessions } in previewed.fates.iter().filter(|count| count.sessions > 0) {
        let _ = writeln!(text, "{sessions} {}", says(*fate));
        let of_it = previewed.examples.iter().filter(|example| example.fate == *fate);
        for PreviewExample { why, session, .. } in of_it {
            let _ = writeln!(text, "  {}: {why}", told(session));
        }
    }
    let against = previewed.revision.map_or_else(String::new, |revision| format!(" of revision {revision}"));
    let _ = writeln!(text, "{} sessions{against} were looked at; nothing has changed", previewed.sessions);
    text
}

fn told(session: &SessionEntry) -> String {
    let to = endpoint(session.destination, session.destination_port);
    let mut told = format!("{} {} > {to}", session.protocol, endpoint(session.source, session.source_port));
    if let (Some(address), Some(port)) = (session.new_source, session.new_source_port) {
        let _ = write!(told, " as {}", endpoint(address, port));
    }
    if let (Some(address), Some(port)) = (session.new_destination, session.new_destination_port) {
        let _ = write!(told, " at {}", endpoint(address, port));
    }
    told
}
