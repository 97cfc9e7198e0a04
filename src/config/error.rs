//! What is wrong with a config, in the operator's words: file, line, key, value and what is allowed.

use std::fmt;
use std::sync::Arc;

/// One fault of a config.
///
/// `gw.toml:12: interface[1].vlan: 5000: a VLAN ID is 1 to 4094`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// The line, counted from 1; `None` where there is no text (a route added over the socket).
    pub line: Option<u32>,
    /// The path of the key, tables counted from 0: `interface[1].vlan`. Empty: the file as a whole.
    pub key: String,
    /// The value as written, if there is one.
    pub value: Option<String>,
    /// What is allowed there, or what it collides with.
    pub allowed: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, ": {value}")?;
        }
        write!(f, ": {}", self.allowed)
    }
}

/// All faults that were found, in the order of the file. Never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The first faults, at most [`ConfigErrors::SHOWN`].
    pub errors: Vec<ConfigError>,
    /// Further faults that were counted and not kept.
    pub more: usize,
    /// A table has so many that not all of them were looked for.
    pub is_cut: bool,
}

impl ConfigErrors {
    /// Faults kept: a screenful. A wrong file of a million routes must not become a million messages.
    pub const SHOWN: usize = 50;

    pub(crate) fn push(&mut self, error: ConfigError) {
        if self.errors.len() < Self::SHOWN {
            self.errors.push(error);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    pub(crate) fn sort(&mut self) {
        self.errors.sort_by_key(|error| error.line); // stable: files in order, each from its first line
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        if self.more > 0 {
            let at_least = if self.is_cut { "at least " } else { "" };
            write!(f, "\n... and {at_least}{} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
impl std::error::Error for ConfigErrors {}
