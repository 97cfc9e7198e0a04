//! The last gate before tables are published: no packet is decided by the tables of a commit that it refuses.
//!
//! What is shared beside the tables has changed by then: while a commit is looked at, workers send by the static
//! neighbours and stations that it names. Taken back, those that were in force are again; what had been learned in the
//! place of others is learned anew.

use ipnet::IpNet;

use super::Gateway;
use crate::config::Config;
use crate::control::Fault;
use crate::explain::{View, assert};
use crate::tables::Tables;
use crate::tables::compile::Retired;
use crate::tables::rib::{Rib, Target};

/// A route of a VRF, and what it is to be; `None`: gone.
pub(super) type RouteChange = (u16, IpNet, Option<Target>);

/// What was in force, to go back to.
pub(super) struct Before {
    config: Config,
    /// All routes, where all may be others.
    rib: Option<Rib>,
    /// What else takes routes back.
    undo: Vec<RouteChange>,
}

impl Gateway {
    /// Whether candidate tables, compiled from `config`, may be published. What stands in the way of a commit though it is
    /// well formed belongs here: assertions of the config.
    pub(super) fn may_be_committed(&self, tables: &Tables, config: &Config) -> Result<(), Fault> {
        let is_port_down = self.ports().iter().any(|port| port.members_up() == 0);
        let view = View { compiler: &self.compiler, config, tables, rib: self.compiler.rib() };
        assert::uphold(view, is_port_down).map_err(Fault::refused)
    }

    /// True if [`Gateway::may_be_committed`] may refuse what is compiled from this config. A commit that is taken back
    /// goes through no gate: what was there before, and was good then, is better than what nobody has confirmed.
    fn has_gate(&self, config: &Config) -> bool {
        !config.asserts.is_empty() && !self.is_taking_back()
    }

    /// To be called before these routes, or anything else, are changed.
    pub(super) fn before(&self, routes: &[RouteChange]) -> Option<Before> {
        if !self.has_gate(&self.config) {
            return None;
        }
        let rib = self.compiler.rib();
        let was = |vrf: u16, net: IpNet| rib.get(vrf, net).map(|target| rib.target(target).clone());
        // The first of several changes of one prefix is undone last.
        let undo = routes.iter().rev().map(|(vrf, net, _)| (*vrf, *net, was(*vrf, *net))).collect();
        Some(Before { config: self.config.clone(), rib: None, undo })
    }

    /// To be called before everything becomes as `new` says.
    pub(super) fn before_all(&self, new: &Config) -> Option<Before> {
        self.has_gate(new).then(|| Before {
            config: self.config.clone(),
            rib: Some(self.compiler.rib().clone()),
            undo: Vec::new(),
        })
    }

    /// Passes what was compiled on to be published, if it may be; else everything is as it was before.
    pub(super) fn admitted(
        &mut self,
        mut retired: Vec<Retired>,
        before: Option<Before>,
        new: Option<&Config>,
    ) -> Result<Vec<Retired>, Fault> {
        let Some(before) = before else { return Ok(retired) };
        let config = new.unwrap_or(&self.config);
        let Err(fault) = self.may_be_committed(self.compiler.tables(), config) else { return Ok(retired) };
        self.config = before.config;
        let back = || {
            if !before.undo.is_empty() {
                retired.push(self.compiler.change_routes(before.undo)?);
            }
            let input = self.input_in_force()?;
            retired.push(match before.rib {
                Some(rib) => self.compiler.compile(input, rib)?,
                None => self.compiler.recompile(input)?,
            });
            Ok::<(), crate::tables::compile::CompileError>(())
        };
        if let Err(error) = back() {
            tracing::error!(%error, "what a refused commit left behind cannot be taken back");
        }
        // What the tables in use say, made anew.
        self.publish(retired);
        Err(fault)
    }
}
