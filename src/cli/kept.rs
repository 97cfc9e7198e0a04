//! Sessions that outlive the process, as `show ha` prints them.

use std::time::Duration;

use crate::control::KeptEntry;

/// The section of `show ha`.
pub(super) fn kept(entry: &KeptEntry) -> String {
    let time = |ms: u64| humantime::format_duration(Duration::from_millis(ms));
    let not: Vec<String> =
        entry.not_restored.iter().map(|lost| format!("{} {}", lost.count, lost.kind)).collect();
    let at_start = match entry.away_ms {
        None => String::from("nothing was left by a process before"),
        Some(away) => format!(
            "{} went on in {}, last sign of life {} before; not restored: {}",
            entry.restored,
            time(entry.took_ms),
            time(away),
            if not.is_empty() { String::from("none") } else { not.join(", ") }
        ),
    };
    let kept = format!("{} sessions, room takes {} MB", entry.sessions, entry.bytes >> 20);
    let mut lines =
        vec![("folder", entry.folder.display().to_string()), ("now", kept), ("at the start", at_start)];
    lines.extend(entry.trouble.clone().map(|trouble| ("trouble", trouble)));
    let lines: String = lines.into_iter().map(|(what, says)| format!("{what:<14} {says}\n")).collect();
    format!("\nKEPT FOR A RESTART\n{lines}")
}
