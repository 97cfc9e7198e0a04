//! A branch of the compiler: what a commit would make, without making it. It knows all names by the slots that they have,
//! what the checks have said and when each part last changed, so that its tables and what workers have in their sessions
//! are about the same things; what it learns, gives away or pins nobody else sees.

use std::sync::Arc;

use super::Compiler;

impl Compiler {
    /// A branch from here. Names, neighbours and claims of NAT are copied, some milliseconds of it; tables and routes are
    /// shared until one of both changes them.
    pub fn branch(&self) -> Compiler {
        Compiler {
            ports: self.ports.clone(),
            interfaces: self.interfaces.clone(),
            vrfs: self.vrfs.clone(),
            bridges: self.bridges.clone(),
            roles: self.roles.clone(),
            policy_slots: self.policy_slots.clone(),
            claims: Arc::new(self.claims.copied()),
            // Made anew by the first thing that is compiled.
            members: None,
            states: Vec::new(),
            services: self.services.clone(),
            deliveries: self.deliveries.clone(),
            health: self.health.clone(),
            orphans: self.orphans.clone(),
            noted: self.noted.clone(),
            taken: self.taken.clone(),
            failed_hops: self.failed_hops.clone(),
            is_due: self.is_due,
            // What is shared with workers follows what is published: nothing of this is.
            defers: true,
            fate: self.fate,
            neighbours: Arc::new(self.neighbours.copied()),
            key: self.key,
            input: self.input.clone(),
            rib: Arc::clone(&self.rib),
            // Pinned in tables that are somebody else's.
            pins: Default::default(),
            tables: Arc::clone(&self.tables),
        }
    }

    /// How many names there are of each kind that sessions carry. Names are never forgotten: as long as there are no more,
    /// every slot means the same in a branch.
    pub fn names_known(&self) -> [usize; 8] {
        let slots = &self.policy_slots;
        [
            self.interfaces.len(),
            self.vrfs.len(),
            self.bridges.len(),
            slots.zones.len(),
            slots.rules.len(),
            slots.nat_rules.len(),
            slots.pools.len(),
            slots.backends.len(),
        ]
    }
}
