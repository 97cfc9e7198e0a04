//! Firewall rules that come and go while the gateway runs, one at a time and at once.

use std::sync::Arc;

use super::Gateway;
use super::lists::Lists;
use crate::config::{self, Config, Rule, RuleName};
use crate::control::{Fault, FaultKind, Patch, RuleAddition};
use crate::tables::compile::Retired;
use crate::tables::policy::{self, RuleChange, Touched};

/// Rules that a transaction may change: more are a new config.
const MOST: usize = 256;

/// A rule of the config in force: whether it is an admin rule, and where it stands among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    is_admin: bool,
    at: usize,
}

/// A change of one rule.
struct Edit {
    place: Place,
    goes: bool,
    comes: Option<Arc<Rule>>,
}

/// What changes of rules have replaced in the tables, and what undoes them.
type Made = (Vec<Retired>, Vec<Patch>);

/// True if it changes rules.
pub(super) fn is_of_rules(patch: &Patch) -> bool {
    matches!(patch, Patch::RuleAdd(_) | Patch::RuleDel(_))
}

impl Gateway {
    /// Makes all of these changes, which are of rules alone, or none. What undoes them.
    pub(super) fn change_rules(&mut self, patches: &[Patch]) -> Result<Vec<Patch>, Fault> {
        self.check_rules(patches)?;
        let before = self.before(patches, &[]);
        let slots = self.compiler.policy_slots.rules.len();
        let (retired, undo) = match self.change_singly(patches)? {
            Some(made) => made,
            None => self.compile_rules(patches)?,
        };
        self.name_rules(slots);
        let retired = self.admitted(retired, before, None)?;
        self.publish(retired);
        Ok(undo)
    }

    /// What can be said of the changes that are of rules before any is made.
    pub(super) fn check_rules(&self, patches: &[Patch]) -> Result<(), Fault> {
        let of_rules = patches.iter().filter(|patch| is_of_rules(patch));
        let count: u64 = of_rules.map(Patch::changes).sum();
        if count > MOST as u64 {
            let message = format!("at most {MOST} rules in a transaction: apply a config with all of them");
            return Err(Fault::new(FaultKind::Limit, message));
        }
        for patch in patches {
            let Patch::RuleAdd(addition) = patch else { continue };
            config::check_rule(&self.config, &addition.rule).map_err(Fault::refused)?;
        }
        Ok(())
    }

    /// Tells the event log of rules that it does not know yet. `slots`: how many there were.
    pub(super) fn name_rules(&mut self, slots: usize) {
        if self.compiler.policy_slots.rules.len() > slots && self.config.log.events.is_some() {
            self.events.set(self.config.log.events.as_deref(), &self.compiler);
        }
    }

    /// One rule after the other, without compiling the others. `None`: that cannot be, and nothing has changed.
    fn change_singly(&mut self, patches: &[Patch]) -> Result<Option<Made>, Fault> {
        let is_one = match patches {
            [Patch::RuleAdd(addition)] => {
                addition.before.is_none() || self.place_of(&addition.rule.name).is_none()
            }
            [Patch::RuleDel(names)] => names.len() == 1,
            _ => false,
        };
        // A single change that fails leaves nothing to take back.
        let lists = (!is_one).then(|| Lists::of(&self.config, patches));
        let policy = Arc::clone(&self.compiler.tables().policy);
        let mut made = Made::default();
        let done = self.change_each(patches, &mut made);
        if !matches!(done, Ok(true)) && !made.0.is_empty() {
            // No worker has seen what is taken back here.
            self.compiler.put_policy(policy, &Touched::default());
            if let Some(lists) = lists {
                lists.put_back(&mut self.config);
            }
        }
        made.1.reverse();
        done.map(|is_done| is_done.then_some(made))
    }

    /// False: one of them cannot be made so. What undoes the last comes last.
    fn change_each(&mut self, patches: &[Patch], made: &mut Made) -> Result<bool, Fault> {
        for patch in patches {
            match patch {
                Patch::RuleAdd(addition) => {
                    let name = &addition.rule.name;
                    if addition.before.is_some()
                        && let Some(place) = self.place_of(name)
                    {
                        same_kind(name, place, addition.admin)?;
                        if !self.change_rule(|gateway| gateway.removal(name), made)? {
                            return Ok(false);
                        }
                    }
                    let came =
                        |gateway: &Gateway| added(addition, |of| gateway.place_of(of), &gateway.config);
                    if !self.change_rule(came, made)? {
                        return Ok(false);
                    }
                }
                Patch::RuleDel(names) => {
                    for name in names {
                        if !self.change_rule(|gateway| gateway.removal(name), made)? {
                            return Ok(false);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// One rule, without compiling the others. False: that cannot be, and nothing has changed.
    fn change_rule(
        &mut self,
        edit: impl FnOnce(&Gateway) -> Result<Edit, Fault>,
        made: &mut Made,
    ) -> Result<bool, Fault> {
        let edit = edit(self)?;
        let admin_rules = if edit.place.is_admin { 0 } else { self.config.admin_rules.len() };
        let at = (admin_rules + edit.place.at) as u32;
        let change = match (edit.goes, &edit.comes) {
            (true, Some(rule)) => RuleChange::Replace(at, Arc::clone(rule)),
            (false, Some(rule)) => RuleChange::Insert(at, Arc::clone(rule)),
            (_, None) => RuleChange::Remove(at),
        };
        let changed = self.compiler.with_rule(&self.config, &change).map_err(Fault::refused)?;
        let Some((policy, touched)) = changed else { return Ok(false) };
        config::check_lines(policy.lines()).map_err(Fault::refused)?;
        made.0.push(self.compiler.put_policy(policy, &touched));
        made.1.extend(edit.make(&mut self.config));
        Ok(true)
    }

    /// Several rules: everything is compiled.
    fn compile_rules(&mut self, patches: &[Patch]) -> Result<Made, Fault> {
        let before = Lists::of(&self.config, patches);
        let compiled = self.compiled_with_rules(patches);
        match compiled {
            Ok((policy, undo)) => Ok((vec![self.compiler.change_policy(Arc::new(policy))], undo)),
            Err(fault) => {
                before.put_back(&mut self.config);
                Err(fault)
            }
        }
    }

    fn compiled_with_rules(&mut self, patches: &[Patch]) -> Result<(policy::Policy, Vec<Patch>), Fault> {
        let undo = self.edit_rules(patches)?;
        let policy = policy::policy(&self.config, &mut self.compiler).map_err(Fault::refused)?;
        config::check_lines(policy.lines()).map_err(Fault::refused)?;
        Ok((policy, undo))
    }

    /// Makes those of these changes that are of rules in the config alone: what undoes them. On an error some of them
    /// are made.
    pub(super) fn edit_rules(&mut self, patches: &[Patch]) -> Result<Vec<Patch>, Fault> {
        let mut undo = Vec::new();
        for patch in patches {
            match patch {
                Patch::RuleAdd(addition) => {
                    let name = &addition.rule.name;
                    if addition.before.is_some()
                        && let Some(place) = place_in(&self.config, name)
                    {
                        same_kind(name, place, addition.admin)?;
                        undo.extend(Edit { place, goes: true, comes: None }.make(&mut self.config));
                    }
                    let came = added(addition, |name| place_in(&self.config, name), &self.config)?;
                    undo.extend(came.make(&mut self.config));
                }
                Patch::RuleDel(names) => {
                    for name in names {
                        let place = place_in(&self.config, name).ok_or_else(|| unknown(name))?;
                        undo.extend(Edit { place, goes: true, comes: None }.make(&mut self.config));
                    }
                }
                _ => {}
            }
        }
        undo.reverse();
        Ok(undo)
    }

    fn removal(&self, name: &RuleName) -> Result<Edit, Fault> {
        let place = self.place_of(name).ok_or_else(|| unknown(name))?;
        Ok(Edit { place, goes: true, comes: None })
    }

    /// By slot, which is quicker than to look at a hundred thousand names.
    fn place_of(&self, name: &RuleName) -> Option<Place> {
        let slot = self.compiler.policy_slots.rules.wide(name.as_str())?;
        let at = self.compiler.tables().policy.position_of(slot)? as usize;
        let admin_rules = self.config.admin_rules.len();
        let is_admin = at < admin_rules;
        Some(Place { is_admin, at: if is_admin { at } else { at - admin_rules } })
    }
}

impl Edit {
    /// Makes it in the config: what undoes it.
    fn make(self, config: &mut Config) -> Option<Patch> {
        let Edit { place: Place { is_admin: admin, at }, goes, comes } = self;
        let rules = if admin { &mut config.admin_rules } else { &mut config.rules };
        let new = comes.as_ref().map(|rule| rule.name.clone());
        let old = rules.splice(at..at + usize::from(goes), comes).next();
        match (old, new) {
            // It came in the place of the one of its name.
            (Some(rule), Some(_)) => Some(Patch::RuleAdd(RuleAddition { rule, before: None, admin })),
            (Some(rule), None) => {
                let before = rules.get(at).map(|next| next.name.clone());
                Some(Patch::RuleAdd(RuleAddition { rule, before, admin }))
            }
            (None, new) => new.map(|name| Patch::RuleDel(vec![name])),
        }
    }
}

fn added(
    addition: &RuleAddition,
    place_of: impl Fn(&RuleName) -> Option<Place>,
    config: &Config,
) -> Result<Edit, Fault> {
    let RuleAddition { rule, before, admin } = addition;
    let comes = Some(Arc::clone(rule));
    if let Some(place) = place_of(&rule.name) {
        same_kind(&rule.name, place, *admin)?;
        return Ok(Edit { place, goes: true, comes });
    }
    let place = match before {
        Some(name) => {
            let place = place_of(name).ok_or_else(|| unknown(name))?;
            same_kind(name, place, *admin)?;
            place
        }
        None => {
            let rules = if *admin { &config.admin_rules } else { &config.rules };
            Place { is_admin: *admin, at: rules.len() }
        }
    };
    Ok(Edit { place, goes: false, comes })
}

fn same_kind(name: &RuleName, place: Place, admin: bool) -> Result<(), Fault> {
    match (place.is_admin, admin) {
        (true, false) => Err(Fault::refused(format!("rule {name} is an admin rule: say admin"))),
        (false, true) => Err(Fault::refused(format!("rule {name} is no admin rule"))),
        _ => Ok(()),
    }
}

fn place_in(config: &Config, name: &RuleName) -> Option<Place> {
    let among = |rules: &[Arc<Rule>], is_admin| {
        rules.iter().position(|rule| rule.name == *name).map(|at| Place { is_admin, at })
    };
    among(&config.admin_rules, true).or_else(|| among(&config.rules, false))
}

fn unknown(name: &RuleName) -> Fault {
    Fault::not_found(format!("no rule {name}; see show rules"))
}
