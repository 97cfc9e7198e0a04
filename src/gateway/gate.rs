//! The last gate before tables are published: no packet meets anything of a commit that it refuses. Tables that are
//! shared with the workers follow what was compiled only when it is published
//! ([`crate::tables::compile::Compiler::take_over`]).

use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::lists::Lists;
use super::{Gateway, Spent};
use crate::config::{Config, Fate};
use crate::control::{Fault, Patch};
use crate::explain::{View, assert};
use crate::tables::Tables;
use crate::tables::compile::{CompileError, Retired};
use crate::tables::meaning;
use crate::tables::policy::{MemberChange, Policy, Touched};
use crate::tables::rib::{Rib, Target};

/// A route of a VRF, and what it is to be; `None`: gone.
pub(super) type RouteChange = (u16, IpNet, Option<Target>);

/// What was in force, to go back to.
pub(super) struct Before {
    lists: Lists,
    /// All routes, where all may be others.
    rib: Option<Rib>,
    /// What else takes routes back.
    undo: Vec<RouteChange>,
    policy: Arc<Policy>,
    /// What takes members of groups back.
    members: Vec<MemberChange>,
}

impl Before {
    /// These members are about to come and go.
    pub fn note_members(&mut self, changes: &[MemberChange]) {
        let back = changes.iter().rev().map(|change| MemberChange { more: -change.more, ..change.clone() });
        self.members = back.collect();
    }
}

impl Gateway {
    /// Whether candidate tables, compiled from `config`, may be published. What stands in the way of a commit though it is
    /// well formed belongs here: assertions of the config.
    pub(super) fn may_be_committed(&self, tables: &Tables, config: &Config) -> Result<(), Fault> {
        // The same of a next hop that BFD has given up.
        let is_port_down =
            self.ports().iter().any(|port| port.members_up() == 0) || !self.compiler.failed_hops().is_empty();
        let view = View { compiler: &self.compiler, config, tables, rib: self.compiler.rib() };
        assert::uphold(view, is_port_down).map_err(Fault::refused)
    }

    /// True if [`Gateway::may_be_committed`] may refuse what is compiled from this config. A commit that is taken back
    /// goes through no gate: what was there before, and was good then, is better than what nobody has confirmed.
    fn has_gate(&self, config: &Config) -> bool {
        !config.asserts.is_empty() && !self.is_taking_back()
    }

    /// To be called before these changes are made. `routes`: what they are to routes.
    pub(super) fn before(&self, patches: &[Patch], routes: &[RouteChange]) -> Option<Before> {
        if !self.has_gate(&self.config) {
            return None;
        }
        let rib = self.compiler.rib();
        let was = |vrf: u16, net: IpNet| rib.get(vrf, net).map(|target| rib.target(target).clone());
        // The first of several changes of one prefix is undone last.
        let undo = routes.iter().rev().map(|(vrf, net, _)| (*vrf, *net, was(*vrf, *net))).collect();
        let policy = Arc::clone(&self.compiler.tables().policy);
        let lists = Lists::of(&self.config, patches);
        Some(Before { lists, rib: None, undo, policy, members: Vec::new() })
    }

    /// To be called before everything is compiled as `new` says, which is not in force yet.
    pub(super) fn before_all(&self, new: &Config) -> Option<Before> {
        self.has_gate(new).then(|| Before {
            lists: Lists::default(),
            rib: Some(self.compiler.rib().clone()),
            undo: Vec::new(),
            policy: Arc::clone(&self.compiler.tables().policy),
            members: Vec::new(),
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
        let begun = Instant::now();
        let config = new.unwrap_or(&self.config);
        let judged = self.may_be_committed(self.compiler.tables(), config);
        Spent::add(&mut self.spent.gates, begun);
        let Err(fault) = judged else { return Ok(retired) };
        if let Err(error) = self.go_back(before, &mut retired) {
            tracing::error!(%error, "what a refused commit left behind cannot be taken back");
        }
        // What the tables in use say, made anew.
        self.publish(retired);
        Err(fault)
    }

    /// The candidate has been before no worker: no session was decided by it, and none has to be decided anew.
    fn go_back(&mut self, before: Before, retired: &mut Vec<Retired>) -> Result<(), CompileError> {
        before.lists.put_back(&mut self.config);
        // What it has said of sessions goes with it.
        self.compiler.fate = Fate::default();
        if let Some(rib) = before.rib {
            let input = self.input_in_force(Some(before.policy))?;
            retired.push(self.compiler.compile(input, rib)?);
            return Ok(());
        }
        if !before.undo.is_empty() {
            retired.push(self.compiler.change_routes(before.undo)?);
        }
        let neighbours = meaning::neighbours(&self.config, &self.config.neighbours);
        if neighbours != self.compiler.input().neighbours {
            retired.push(self.compiler.change_neighbours(neighbours)?);
        }
        if !Arc::ptr_eq(&before.policy, &self.compiler.tables().policy) {
            let members = match before.members.is_empty() {
                true => None,
                false => self.compiler.with_members(&self.config.groups, &before.members),
            };
            // What the next change of a member goes on from has to be what the policy has.
            let policy = match members {
                Some((with_members, _)) => Arc::new(before.policy.with_members_of(&with_members)),
                None => before.policy,
            };
            retired.push(self.compiler.put_policy(policy, &Touched::default()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::neighbours::addr_key;
    use crate::tables::compile::Compiler;
    use crate::tables::meaning::{self, PortFacts};

    const ADDR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

    fn config(mac: u8) -> Config {
        let text = format!(
            "schema = 1\n[[port]]\nname = \"p\"\ndevice = \"eth1\"\n[[interface]]\nname = \"lan\"\nport = \"p\"\n\
             addresses = [\"192.0.2.1/24\"]\n[[neighbour]]\ninterface = \"lan\"\naddress = \"{ADDR}\"\n\
             mac = \"02:00:00:00:00:{mac:02x}\"\n"
        );
        Config::parse(&text, "test.toml").expect("a config")
    }

    fn compile(compiler: &mut Compiler, mac: u8) -> Retired {
        let config = config(mac);
        let facts = [PortFacts::stable(0)];
        let rib = meaning::rib(&config, compiler).expect("routes");
        let input = meaning::input(&config, &facts, compiler).expect("interfaces");
        compiler.compile(input, rib).expect("tables")
    }

    /// A commit is compiled, refused and taken back; then another is published.
    #[test]
    fn what_is_refused_has_changed_nothing_that_workers_share() {
        let (node, mut compiler) = crate::replay::compile(&config(1), 1, false).expect("tables");
        compiler.defer();
        let lan = compiler.interfaces.get("lan").expect("it is there");
        let mac = || {
            let slot = node.neighbours.find(lan, addr_key(ADDR)).expect("it is pinned");
            node.neighbours.word(slot).mac() as u8
        };
        let refused = compile(&mut compiler, 2);
        assert_eq!(mac(), 1, "while it is looked at");
        let back = compile(&mut compiler, 1);
        compiler.take_over();
        [refused, back].into_iter().for_each(|retired| retired.release(&node.neighbours));
        assert_eq!(mac(), 1);
        let taken = compile(&mut compiler, 3);
        compiler.take_over();
        taken.release(&node.neighbours);
        assert_eq!(mac(), 3);
    }
}
