//! Changes of several kinds in one transaction: rules, backends of services, groups, routes, neighbours.
//!
//! Of one kind alone what is compiled is little (see [`super::rules`], [`super::services`], [`super::requests`]); of several
//! the policy is compiled as a whole. Either way packets meet all of it at once, or nothing: there is one publication.

use std::sync::Arc;

use super::Gateway;
use super::gate::RouteChange;
use super::lists::Lists;
use super::{groups, services};
use crate::config;
use crate::control::{Fault, Patch};
use crate::tables::compile::Retired;
use crate::tables::policy;

/// What is known of the changes before any is made.
struct Checked {
    groups: Option<groups::After>,
    services: Option<services::After>,
    routes: Vec<RouteChange>,
}

impl Gateway {
    /// Makes all of these changes, or none. What undoes those of rules.
    pub(super) fn change_mixed(&mut self, patches: &[Patch]) -> Result<Vec<Patch>, Fault> {
        self.check_patches(patches)?;
        self.check_rules(patches)?;
        let mut checked = Checked {
            groups: groups::changed(&self.config.groups, &self.temporary, patches)?,
            services: self.services_after(patches)?,
            routes: self.routes_of(patches)?,
        };
        let temporary = checked.groups.as_mut().map(|after| std::mem::take(&mut after.temporary));
        let concerns_checks = checked.services.as_ref().is_some_and(|after| after.concerns_checks);

        let before = self.before(patches, &checked.routes);
        let (old, slots) = (Lists::of(&self.config, patches), self.compiler.policy_slots.rules.len());
        let (retired, undo) = match self.compile_mixed(patches, checked) {
            Ok(made) => made,
            Err(fault) => {
                old.put_back(&mut self.config);
                return Err(fault);
            }
        };
        self.name_rules(slots);
        let retired = self.admitted(retired, before, None)?;
        self.forget_deleted(patches);
        self.publish(retired);

        self.services_changed(patches, concerns_checks);
        let now = self.now();
        for (key, ttl) in temporary.into_iter().flatten() {
            self.temporary.set(key, ttl.map(|ttl| now.plus(ttl)));
        }
        Ok(undo)
    }

    /// What was replaced in the tables, and what undoes the changes of rules. On an error the config is half changed, and
    /// nothing else is.
    fn compile_mixed(
        &mut self,
        patches: &[Patch],
        checked: Checked,
    ) -> Result<(Vec<Retired>, Vec<Patch>), Fault> {
        let Checked { groups, services, routes } = checked;
        if let Some(after) = groups {
            self.config.groups = after.groups;
        }
        if let Some(after) = services {
            self.config.services = after.services;
        }
        let undo = self.edit_rules(patches)?;
        let policy = policy::policy(&self.config, &mut self.compiler).map_err(Fault::refused)?;
        config::check_lines(policy.lines()).map_err(Fault::refused)?;
        // On an error nothing has changed; what follows cannot fail.
        let neighbours = self.neighbours_after(patches);
        let mut retired = self.compile_neighbours_and_routes(neighbours.as_deref(), routes)?;
        if let Some(neighbours) = neighbours {
            self.config.neighbours = neighbours;
        }
        retired.push(self.compiler.change_policy(Arc::new(policy)));
        Ok((retired, undo))
    }
}
