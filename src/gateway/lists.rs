//! The lists of the config that small commits change, kept to be put back: only those that a commit is of, since a copy of a
//! hundred thousand rules costs more than to change one.

use std::sync::Arc;

use crate::config::{Config, Group, Neighbour, Rule, VirtualService};
use crate::control::Patch;

/// Lists as they were; `None`: nobody was to change it.
#[derive(Debug, Default)]
pub(super) struct Lists {
    admin_rules: Option<Vec<Arc<Rule>>>,
    rules: Option<Vec<Arc<Rule>>>,
    groups: Option<Vec<Arc<Group>>>,
    services: Option<Vec<Arc<VirtualService>>>,
    neighbours: Option<Vec<Neighbour>>,
}

impl Lists {
    /// Those that these changes are of.
    pub fn of(config: &Config, patches: &[Patch]) -> Lists {
        let mut lists = Lists::default();
        for patch in patches {
            match patch {
                Patch::RuleAdd(_) | Patch::RuleDel(_) => {
                    lists.admin_rules.get_or_insert_with(|| config.admin_rules.clone());
                    lists.rules.get_or_insert_with(|| config.rules.clone());
                }
                Patch::GroupAdd(_) | Patch::GroupDel(_) => {
                    lists.groups.get_or_insert_with(|| config.groups.clone());
                }
                Patch::ServiceSetBackends(_) | Patch::ServiceDelBackends(_) | Patch::ServiceSetBackend(_) => {
                    lists.services.get_or_insert_with(|| config.services.clone());
                }
                Patch::NeighbourAdd(_) | Patch::NeighbourDel(_) => {
                    lists.neighbours.get_or_insert_with(|| config.neighbours.clone());
                }
                // Routes are the compiler's.
                Patch::RouteAdd(_) | Patch::RouteDel(_) => {}
            }
        }
        lists
    }

    /// Has the config as it was.
    pub fn put_back(self, config: &mut Config) {
        let Lists { admin_rules, rules, groups, services, neighbours } = self;
        if let Some(rules) = admin_rules {
            config.admin_rules = rules;
        }
        if let Some(rules) = rules {
            config.rules = rules;
        }
        if let Some(groups) = groups {
            config.groups = groups;
        }
        if let Some(services) = services {
            config.services = services;
        }
        if let Some(neighbours) = neighbours {
            config.neighbours = neighbours;
        }
    }
}
