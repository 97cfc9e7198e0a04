//! What a start begins with: the config file it is given, or the last revision.
//!
//! The file wins if its text, or that of a route file, has changed since the revision that came from it was committed, and
//! if none ever did; else what was committed last is what the operator wants. A revision that waited to be confirmed when the
//! gateway ended was not.

use super::{Document, Source, Store};

/// What the operator says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: the rule decides.
    #[default]
    Rule,
    /// The file, whatever is kept.
    File,
    /// The last revision, whatever the file says.
    Revision,
}

/// What a start begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The file.
    File,
    /// The last revision as it is.
    Last(u64),
    /// One before the last, which was not confirmed.
    Before {
        /// The one to begin with.
        revision: u64,
        /// The one that was not confirmed.
        unconfirmed: u64,
    },
}

/// Decides, and says why. `file`: the config file and its route files, if they can be read; `path` is absolute.
pub fn choose(store: &Store, wish: Wish, path: &str, file: Option<&Document>) -> (Begin, String) {
    let Some(last) = store.last() else {
        return (Begin::File, format!("{path}: no revision is kept yet"));
    };
    let (kept, why_kept) = match store.unconfirmed() {
        Some(unconfirmed) => {
            let back_to = unconfirmed.confirm.as_ref().map_or(unconfirmed.number, |confirm| confirm.back_to);
            let unconfirmed = unconfirmed.number;
            let begin = Begin::Before { revision: back_to, unconfirmed };
            (
                begin,
                format!(
                    "revision {back_to}: revision {unconfirmed} was not confirmed when the gateway ended"
                ),
            )
        }
        None => (Begin::Last(last.number), format!("revision {}, the last one", last.number)),
    };
    match (wish, file, store.source(path)) {
        (Wish::File, ..) => (Begin::File, format!("{path}: as --from-file asks for")),
        (Wish::Revision, ..) => (kept, format!("{why_kept}, as --from-revision asks for")),
        (Wish::Rule, _, None) => (Begin::File, format!("{path}: no revision that is kept came from it")),
        (Wish::Rule, Some(file), Some(source)) if source.digest != Source::digest(file) => {
            let why =
                format!("{path}: it has changed since revision {}, which came from it", source.revision);
            (Begin::File, why)
        }
        // One that cannot be read says nothing; whoever reads it next will be told why.
        (Wish::Rule, None, Some(_)) => (Begin::File, format!("{path}: it cannot be read")),
        (Wish::Rule, Some(_), Some(source)) => {
            let why = format!("{why_kept}; {path} is as it was at revision {}", source.revision);
            (kept, why)
        }
    }
}
