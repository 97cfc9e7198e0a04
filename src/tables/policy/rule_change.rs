//! One rule more, less, or another in its place: one classifier takes it in, everything else of the policy is shared.

use std::sync::Arc;

use ahash::AHashMap;

use super::compile::{Build, rule_of};
use super::{Policy, RuleInfo, Touched, nat64};
use crate::config::{Config, Rule, Side};
use crate::tables::compile::{CompileError, Compiler};

/// A change of the list of rules. Positions are those in the list of admin rules with the rules behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleChange {
    /// A rule comes before the one at this position, or at the end.
    Insert(u32, Arc<Rule>),
    /// The rule at this position goes.
    Remove(u32),
    /// The rule at this position becomes another.
    Replace(u32, Arc<Rule>),
}

impl RuleChange {
    /// The position; whether a rule goes there; the one that comes.
    fn parts(&self) -> (u32, bool, Option<&Arc<Rule>>) {
        match self {
            RuleChange::Insert(at, rule) => (*at, false, Some(rule)),
            RuleChange::Remove(at) => (*at, true, None),
            RuleChange::Replace(at, rule) => (*at, true, Some(rule)),
        }
    }
}

/// True if one of its lists of prefixes is compiled as a group is.
fn has_list(rule: &Rule) -> bool {
    [&rule.from, &rule.to].into_iter().any(Side::is_looked_up)
}

impl Policy {
    /// The position of the rule with this slot.
    pub fn position_of(&self, slot: u32) -> Option<u32> {
        self.rule_info.iter().position(|rule| rule.slot == slot).map(|at| at as u32)
    }

    /// Lines of all rules.
    pub fn lines(&self) -> usize {
        self.rules.lines()
    }
}

impl Compiler {
    /// The policy after one rule of it has changed, and whose sessions it matters to. `None`: it has to be compiled
    /// anew.
    pub fn with_rule(
        &mut self,
        config: &Config,
        change: &RuleChange,
    ) -> Result<Option<(Arc<Policy>, Touched)>, CompileError> {
        let policy = Arc::clone(&self.tables().policy);
        // As where members change: what is not of this policy is of no use.
        let Some(members) =
            self.members.take().filter(|members| Arc::ptr_eq(members.groups(), &policy.groups))
        else {
            return Ok(None);
        };
        let sets = members.sets().map(|(name, set)| (name.as_str(), *set)).collect();
        let result = with_rule(self, config, &policy, sets, change);
        self.members = Some(members);
        result
    }
}

fn with_rule(
    compiler: &mut Compiler,
    config: &Config,
    policy: &Policy,
    sets: AHashMap<&str, u16>,
    change: &RuleChange,
) -> Result<Option<(Arc<Policy>, Touched)>, CompileError> {
    let (at, goes, comes) = change.parts();
    let gone = goes.then(|| policy.said.rule(at));
    if comes.is_some_and(|rule| has_list(rule)) || gone.is_some_and(|rule| has_list(rule)) {
        return Ok(None);
    }
    let mut lines = Vec::new();
    let info = comes.map(|rule| rule_of(&mut Build::of_rule(config, compiler, sets), at, rule, &mut lines));
    let info: Option<RuleInfo> = info.transpose()?;
    let lines = nat64::with_seen(lines, &policy.nat64);
    let came = comes.map(|_| lines.as_slice());
    let Some(rules) = policy.rules.with(at, goes, came) else { return Ok(None) };
    let mut infos = Vec::with_capacity(policy.rule_info.len() + 1);
    let behind = at as usize + usize::from(goes);
    infos.extend_from_slice(&policy.rule_info[..at as usize]);
    infos.extend(info);
    infos.extend_from_slice(&policy.rule_info[behind..]);
    let (said, mut touched) = policy.said.with_rule(at, goes, comes, &compiler.policy_slots);
    if gone == comes {
        touched = Touched::default();
    }
    let new = Policy {
        rules: Arc::new(rules),
        rule_info: infos.into(),
        shadows: Arc::new(policy.shadows.with(at, goes, came)),
        said: Arc::new(said),
        ..policy.clone()
    };
    Ok(Some((Arc::new(new), touched)))
}
