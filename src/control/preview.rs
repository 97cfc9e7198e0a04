//! What commands ask and see of a preview: what a commit would do to the sessions there are.
//!
//! A preview takes longer than a request may: the first one begins it, and says by which number to ask for the rest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inspect::SessionEntry;
use crate::config::Fate;

/// Params of `preview`. With `after` only that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PreviewQuery {
    /// What errors call the config.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file_name: String,
    /// The config; empty: as uploaded under `""`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The route files, by path, as uploaded.
    #[serde(skip)]
    pub files: Vec<(String, String)>,
    /// Sessions shown of each fate but `stays`; absent: 10, at most 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<u32>,
    /// What the commit is to say of sessions that it would end.
    #[serde(skip_serializing_if = "Fate::is_usual")]
    pub fate: Fate,
    /// Go on with this preview: `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

impl PreviewQuery {
    /// Examples of a fate where nobody says how many.
    pub const EXAMPLES: u32 = 10;
    /// Most examples of a fate.
    pub const MOST_EXAMPLES: u32 = 100;
}

/// What would become of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SessionFate {
    /// It ends: its next packet is lost.
    Dropped,
    /// It ends, because it would leave where it had another source: its mapping is of no use there.
    MappingLost,
    /// Its next packet goes to another backend.
    BackendChanged,
    /// It leaves by another interface or next hop, in one direction at least.
    EgressChanged,
    /// It goes on under another rule or NAT rule.
    RuleChanged,
    /// It goes on with an outside address or a backend that takes no new ones from then on.
    Drains,
    /// Nothing changes.
    Stays,
    /// It ends anyway: a commit before has said so, and no packet of it has come since.
    Ending,
    /// A rule refuses it, and it goes on because the commit is to say so (`keep`).
    Kept,
}

impl SessionFate {
    /// All, in the order in which they are shown.
    pub const ALL: [SessionFate; 9] = [
        SessionFate::Dropped,
        SessionFate::MappingLost,
        SessionFate::BackendChanged,
        SessionFate::EgressChanged,
        SessionFate::RuleChanged,
        SessionFate::Drains,
        SessionFate::Stays,
        SessionFate::Ending,
        SessionFate::Kept,
    ];
}

/// How far a preview is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PreviewStage {
    /// The config is being read and checked.
    #[default]
    Reading,
    /// Its tables are being compiled.
    Compiling,
    /// Sessions are being looked at.
    Judging,
    /// All of them were.
    Done,
}

/// Sessions of one fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FateCount {
    /// The fate.
    pub fate: SessionFate,
    /// How many.
    pub sessions: u64,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PreviewExample {
    /// What would become of it.
    pub fate: SessionFate,
    /// Why, or what would be otherwise.
    pub why: String,
    /// As it is now.
    pub session: SessionEntry,
}

/// To `preview`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Previewed {
    /// There is more to come: `after` of the next request.
    pub next: Option<u64>,
    /// How far it is.
    pub stage: PreviewStage,
    /// The revision in force; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Sessions looked at.
    pub sessions: u64,
    /// By fate, all of them; so far.
    pub fates: Vec<FateCount>,
    /// Some of each fate but `stays`, once it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<PreviewExample>,
}
