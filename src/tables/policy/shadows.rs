//! Rules that can never match: everything they would is an earlier rule's.

use std::sync::OnceLock;

use ahash::{AHashMap, AHashSet};

use super::rules::{ANY, Condition, Line};
use crate::tables::classify::{self, Match};

/// Most lines that are kept for the question: 2.5 MB.
const MAX_LINES: usize = 20_000;
/// Most pairs of lines and zone pairs looked at: about a second.
const MAX_WORK: usize = 50_000_000;

/// By position: rules and for each an earlier one that covers it.
type Pairs = Box<[(u32, u32)]>;

/// The lines of the rules, until somebody asks.
#[derive(Default)]
pub(super) struct Shadows {
    /// `None`: too many.
    lines: Option<Box<[Line]>>,
    found: OnceLock<Option<Pairs>>,
}

impl Shadows {
    pub fn of(lines: &[Line]) -> Shadows {
        let lines = (lines.len() <= MAX_LINES).then(|| lines.into());
        Shadows { lines, found: OnceLock::new() }
    }

    /// After the rule at a position has gone, another has come there, or both.
    pub fn with(&self, at: u32, goes: bool, comes: Option<&[Line]>) -> Shadows {
        let Some(lines) = &self.lines else { return Shadows::default() };
        let first = lines.partition_point(|line| line.rule < at);
        let end = if goes { lines.partition_point(|line| line.rule <= at) } else { first };
        let mut new = lines[..first].to_vec();
        new.extend(comes.into_iter().flatten());
        let behind = at + u32::from(goes);
        let moved =
            |line: &Line| Line { rule: line.rule - behind + at + u32::from(comes.is_some()), ..*line };
        new.extend(lines[end..].iter().map(moved));
        Shadows::of(&new)
    }

    pub fn shadowed(&self) -> Option<&[(u32, u32)]> {
        self.found.get_or_init(|| find(self.lines.as_deref()?)).as_deref()
    }
}

/// What a line is behind: only lines that hold at least there can cover it.
type Behind = (u16, u16, Condition);

fn find(lines: &[Line]) -> Option<Pairs> {
    let places: AHashSet<Behind> =
        lines.iter().map(|line| (line.from_zone, line.to_zone, line.condition)).collect();
    if places.len() * lines.len() > MAX_WORK {
        return None;
    }
    // By line: who covers it.
    let mut covered: AHashMap<u32, u32> = AHashMap::new();
    for (from, to, condition) in places {
        let is_around = |wide: u16, narrow: u16| wide == ANY || wide == narrow;
        let mut around: Vec<u32> = Vec::new();
        let mut matches: Vec<Match> = Vec::new();
        for (line, at) in lines.iter().zip(0..) {
            if is_around(line.from_zone, from)
                && is_around(line.to_zone, to)
                && (line.condition == Condition::NONE || line.condition == condition)
            {
                around.push(at);
                matches.push(line.matched);
            }
        }
        for (line, by) in classify::shadowed(&matches) {
            let (line, by) = (around[line as usize], around[by as usize]);
            let Line { from_zone, to_zone, condition: its, rule, .. } = lines[line as usize];
            let by = lines[by as usize].rule;
            if (from_zone, to_zone, its) == (from, to, condition) && by < rule {
                covered.insert(line, by);
            }
        }
    }
    // A rule with all its lines covered.
    let mut rules: AHashMap<u32, Option<u32>> = AHashMap::new();
    for (line, at) in lines.iter().zip(0..) {
        let by = covered.get(&at).copied();
        let entry = rules.entry(line.rule).or_insert(by);
        *entry = entry.and_then(|first| by.map(|by| first.max(by)));
    }
    let mut found: Vec<(u32, u32)> = rules.into_iter().filter_map(|(rule, by)| Some((rule, by?))).collect();
    found.sort_unstable();
    Some(found.into())
}
