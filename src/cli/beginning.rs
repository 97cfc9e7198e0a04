//! What `softgate run` begins with: the config file, or the last revision of the state folder.

use std::path::PathBuf;

use serde::Deserialize;

use super::run::Args;
use super::{Trouble, read};
use crate::config::{self, Config, Control, Name};
use crate::control::revisions::choice::{self, Begin, Wish};
use crate::control::revisions::store::Limits;
use crate::control::revisions::{Document, Revision, Store};

/// A revision that a start makes, with its document and the file that it came from.
type New = (Revision, Document, Option<String>);

/// The config to run, and where its commits are kept.
pub(super) struct Beginning {
    pub config: Config,
    /// What errors call the config.
    pub file_name: String,
    /// The revisions, and the one that the start itself makes.
    pub kept: Option<(Store, Option<New>)>,
    /// The node that this is, if the config knows several.
    pub node: Option<Name>,
}

/// Finds the config, as it is on this node.
pub(super) fn find(args: &Args) -> Result<Beginning, Trouble> {
    let mut found = for_all_nodes(args)?;
    // A host has a name; without one it is none of them.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (asked, host) = (args.node.as_ref(), host.trim());
    found.node = found.config.this_node(asked, host).map_err(Trouble::Wrong)?;
    match &found.node {
        Some(node) => {
            tracing::info!(%node, "this is the node");
            found.config = found.config.on_node(node, &found.file_name)?;
        }
        None if found.config.nodes.is_empty() => {}
        None => tracing::warn!(host, "no [node.NAME] of the config is this host's: run --node NAME"),
    }
    Ok(found)
}

fn for_all_nodes(args: &Args) -> Result<Beginning, Trouble> {
    let wish = match (args.from_file, args.from_revision) {
        (true, _) => Wish::File,
        (_, true) => Wish::Revision,
        _ => Wish::Rule,
    };
    let file = document(args);
    // A large file is checked only if it is what the start begins with.
    let of_file = || state_dir_of(&file.as_ref().ok()?.text);
    let state_dir = args.state.clone().or_else(of_file);

    let Some(folder) = state_dir else {
        if wish == Wish::Revision {
            let why = "--from-revision needs a folder with revisions: --state DIR, or state_dir in [control]";
            return Err(Trouble::Unable(why.to_owned()));
        }
        let document = file?;
        let config = document.config()?;
        tracing::warn!(
            "no revisions are kept: a restart begins with the config file, and nothing can be rolled back; set state_dir \
             in [control]"
        );
        return Ok(Beginning { config, file_name: document.file_name, kept: None, node: None });
    };
    let (store, notices) =
        Store::open(&folder, Limits::default()).map_err(|error| Trouble::Unable(error.to_string()))?;
    notices.iter().for_each(|notice| tracing::warn!(notice, "revisions"));
    let path = std::path::absolute(&args.config).unwrap_or_else(|_| args.config.clone());
    let path = path.display().to_string();
    let (begin, why) = choice::choose(&store, wish, &path, file.as_ref().ok());
    tracing::info!(why, "begins with");
    let made = |number: u64, request: &str, message: String| Revision {
        number,
        time: Revision::now(),
        request: request.to_owned(),
        about: vec![format!("config {}", args.config.display())],
        changes: 1,
        message: Some(message),
        ..Revision::default()
    };
    match begin {
        Begin::File => {
            let document = file?;
            let config = document.config()?;
            let file_name = document.file_name.clone();
            let revision = made(store.next(), "start", why);
            Ok(Beginning {
                config,
                file_name,
                kept: Some((store, Some((revision, document, Some(path))))),
                node: None,
            })
        }
        Begin::Last(number) => {
            let (document, config) = of_revision(&store, number)?;
            if let Some(migrated) = document.migrated() {
                // The next binary may not read what the one before this one has written.
                let file_name = migrated.file_name.clone();
                let why = format!("revision {number} in the words of schema {}", config::SCHEMA);
                let made = Revision {
                    about: vec![format!("revision {number}")],
                    ..made(store.next(), "start", why)
                };
                let kept = Some((store, Some((made, migrated, None))));
                return Ok(Beginning { config, file_name, kept, node: None });
            }
            Ok(Beginning { config, file_name: document.file_name, kept: Some((store, None)), node: None })
        }
        Begin::Before { revision, .. } => {
            let (document, config) = of_revision(&store, revision)?;
            let document = document.migrated().unwrap_or(document);
            let file_name = document.file_name.clone();
            let made = Revision {
                about: vec![format!("revision {revision}")],
                ..made(store.next(), "rollback", why)
            };
            Ok(Beginning { config, file_name, kept: Some((store, Some((made, document, None)))), node: None })
        }
    }
}

fn of_revision(store: &Store, number: u64) -> Result<(Document, Config), Trouble> {
    let wrong = |why: String| {
        Trouble::Unable(format!(
            "{}: revision {number}: {why}\n--from-file begins with the config file instead",
            store.folder().display()
        ))
    };
    let document = store.document(number).map_err(|error| wrong(error.to_string()))?;
    let config = document.config().map_err(|errors| wrong(errors.to_string()))?;
    Ok((document, config))
}

/// What a config says of the folder, whatever else is in it.
fn state_dir_of(text: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Head {
        control: Control,
    }
    toml::from_str::<Head>(text).ok()?.control.state_dir
}

/// The config file and its route files. What cannot be read of the latter is told when the config is checked.
fn document(args: &Args) -> Result<Document, Trouble> {
    let text = read(&args.config)?;
    let mut files = Vec::new();
    for path in config::route_file_paths(&text) {
        let file = config::beside(&args.config, &path);
        match config::read_file(&file) {
            Ok(text) => files.push((path, text)),
            // Said with everything else that is wrong.
            Err(_) => super::load_config(&args.config).map(|_| ())?,
        }
    }
    Ok(Document { file_name: args.config.display().to_string(), text, files })
}
