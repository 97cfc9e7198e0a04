//! `[[role]]`: who may ask the control socket for what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::{Name, NotAllowed, VrfName, ZoneName, from_text};

/// `[[role]]`: what some users of the control socket may ask for. Without any role, everybody whom the socket lets in may
/// do everything; root and the user that the gateway runs as always may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// What the audit calls it.
    pub name: Name,
    /// Users, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<u32>,
    /// Groups of users, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gids: Vec<u32>,
    /// What they may do.
    pub may: Vec<Right>,
    /// Only to what belongs to these VRFs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vrfs: Vec<VrfName>,
    /// Only to what belongs to these zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<ZoneName>,
}

impl Role {
    /// True if it is one of a tenant: it sees and changes only what belongs to its VRFs and zones.
    pub fn is_bounded(&self) -> bool {
        !self.vrfs.is_empty() || !self.zones.is_empty()
    }

    /// True if it includes what is asked for, as one of [`ASKABLE`].
    pub fn may(&self, asked: &str) -> bool {
        self.may.iter().any(|right| right.includes(asked))
    }
}

/// What can be asked for: the methods of the control socket, with a space for the dot. Whoever may do anything may `ping`,
/// `begin` and `abort`; to `commit` takes what each of the changes takes, and an `upload` is part of `apply` or
/// `preview`.
pub const ASKABLE: [&str; 49] = [
    "show version",
    "show ports",
    "show interfaces",
    "show routes",
    "show neighbours",
    "show counters",
    "show drops",
    "show workers",
    "show dhcp-relays",
    "show sessions",
    "show nat",
    "show nat mappings",
    "show rules",
    "show services",
    "show bridges",
    "show macs",
    "show groups",
    "show ha",
    "show convergence",
    "show pair-commit",
    "show revisions",
    "show revision",
    "nat map",
    "nat find",
    "drops export",
    "explain",
    "reach",
    "preview",
    "clear sessions",
    "bridge add-macs",
    "bridge del-macs",
    "bridge open",
    "service set-backends",
    "service del-backends",
    "service set-backend",
    "group add",
    "group del",
    "neighbour add",
    "neighbour del",
    "route add",
    "route del",
    "rule add",
    "rule del",
    "apply",
    "rollback",
    "confirm",
    "drain",
    "drain cancel",
    "upgrade",
];

/// What a word for several stands for.
const VIEWER: [&str; 5] = ["show", "nat", "drops", "explain", "reach"];
// A preview changes nothing, but takes a second set of tables, and room for what is uploaded.
const OPERATOR: [&str; 6] = ["preview", "clear", "bridge", "service", "group", CONFIRM_OWN];

/// What `confirm` asks for where the commit that waits is one's own, and what it takes to let one's own wait. Who may
/// `confirm` may that too; it is no request by itself.
pub(crate) const CONFIRM_OWN: &str = "confirm own";

/// `"show"`, `"service set-backends"`, `"operator"`: something that a role may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Right(Box<str>);

impl Right {
    /// The right as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if it includes what is asked for, as one of [`ASKABLE`].
    pub fn includes(&self, asked: &str) -> bool {
        let operates = || OPERATOR.iter().any(|word| begins(asked, word));
        match &*self.0 {
            "admin" => true,
            "operator" => only_reads(asked) || operates(),
            "viewer" => only_reads(asked),
            right => begins(asked, right),
        }
    }
}

/// True if what is asked for changes nothing.
pub fn only_reads(asked: &str) -> bool {
    VIEWER.iter().any(|word| begins(asked, word))
}

/// True if the words of `right` are the first of what is asked for.
fn begins(asked: &str, right: &str) -> bool {
    asked.strip_prefix(right).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

impl FromStr for Right {
    type Err = NotAllowed;

    fn from_str(text: &str) -> Result<Right, NotAllowed> {
        let right = Right(text.into());
        if matches!(text, "viewer" | "operator" | "admin" | CONFIRM_OWN)
            || ASKABLE.iter().any(|asked| begins(asked, text))
        {
            return Ok(right);
        }
        let message = "allowed are \"viewer\", \"operator\", \"admin\", and requests or their first word: \"show\", \
                       \"show sessions\", \"service set-backends\", \"group add\", \"apply\"";
        Err(NotAllowed::because(message.to_owned()))
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Right {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Right {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a right")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_include_what_they_begin() {
        let right = |text: &str| text.parse::<Right>().expect("a right");
        assert!(right("show").includes("show sessions") && right("show sessions").includes("show sessions"));
        assert!(!right("show sessions").includes("show services"));
        assert!(right("service set-backend").includes("service set-backend"));
        assert!(!right("service set-backend").includes("service set-backends"), "words, not letters");
        for (right, may, may_not) in [
            ("viewer", "nat find", "clear sessions"),
            ("operator", "service set-backends", "apply"),
            ("operator", "show drops", "route add"),
            ("operator", "confirm own", "confirm"),
            ("confirm", "confirm own", "rollback"),
            ("admin", "apply", ""),
        ] {
            let right: Right = right.parse().expect("a right");
            assert!(right.includes(may), "{right}: {may}");
            assert!(may_not.is_empty() || !right.includes(may_not), "{right}: {may_not}");
        }
        for bad in ["", "sho", "show session", "root", "service set", "show ", " show"] {
            assert!(bad.parse::<Right>().is_err(), "{bad:?}");
        }
    }
}
