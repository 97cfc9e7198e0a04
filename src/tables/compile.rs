//! Compiles what the operator configured into [`Tables`]. Runs on the control thread.
//!
//! A VRF's leaves stand for *targets* (what a route was configured to do), its actions for what that
//! means right now. A port that loses carrier therefore changes actions and no FIB: ECMP members are
//! withdrawn at once, and only routes that lost their last next hop need a rebuilt FIB, so that a less
//! specific route takes over.

mod branch;
mod neighbours;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::bridge::{Bridge, Bridges, MAX_BRIDGES, Member, NO_BRIDGE, Snooping};
use super::ecmp::Group;
use super::fib4::Fib4;
use super::fib6::Fib6;
use super::news::News;
use super::on_commit::OnCommit;
use super::overlay::{NO_OVERLAY, Overlay, OverlaySpec, Overlays};
use super::pair_link::{PairLink, PairLinkSpec};
use super::relay::{Relay, RelaySpec, Relays};
use super::rib::{Hop, Rib, Target, TargetId};
use super::virtual_router::{VirtualAddresses, VirtualRouter};
use super::*;
use crate::config::{Fate, OnFailure, VirtualService as VirtualServiceConfig};
use crate::flow::nat::BlockClaims;
use crate::macs::Location;
use crate::neighbours::{NeighbourTable, addr_key, mac_to_u64};
use crate::packet::hash::Key;
use crate::packet::view::ethertype;
use crate::roles::MAX_ROLES;
use crate::tables::balance::{BackendState, Backends, Deliveries, Health, VirtualService};
use crate::tables::policy::{self, Members, NO_ZONE, PairEpochs, Policy, PolicySlots, Touched};
use crate::time::Nanos;

/// Most ports of a node: the XDP program's socket map has room for them.
pub const MAX_PORTS: usize = 64;
/// Most interfaces a node can have had since its start.
pub const MAX_INTERFACES: usize = 16_384;
/// Most VRFs a node can have had since its start.
pub const MAX_VRFS: usize = 16_384;

/// Everything but the routes, in the tables' terms.
#[derive(Clone)]
pub struct Input {
    /// Node-wide behaviour.
    pub settings: Settings,
    /// Ports, in configured order.
    pub ports: Vec<PortSpec>,
    /// Interfaces, in configured order.
    pub interfaces: Vec<InterfaceSpec>,
    /// Bridges; their members are interfaces.
    pub bridges: Vec<BridgeSpec>,
    /// VRFs that exist beside those interfaces name.
    pub vrfs: Vec<String>,
    /// The operator's neighbours.
    pub neighbours: Vec<NeighbourSpec>,
    /// Zones, rules and NAT.
    pub policy: Arc<Policy>,
    /// The way to the other node of a pair.
    pub pair_link: Option<PairLinkSpec>,
}

/// A port as the tables need it.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Name.
    pub name: String,
    /// How its devices share the work.
    pub lag: Lag,
    /// Members that may send, one bit each.
    pub members_up: u8,
}

/// An interface as the tables need it.
#[derive(Clone, Debug)]
pub struct InterfaceSpec {
    /// Name.
    pub name: String,
    /// Its port's name; none for the segment of a VNI.
    pub port: Option<String>,
    /// The segment it is an end of, instead of a port.
    pub overlay: Option<OverlaySpec>,
    /// The bridge it belongs to, by name; a member is on a port or an overlay as well.
    pub bridge: Option<String>,
    /// Of a member: stations it may have, and frames a second from it to all others.
    pub limits: (u32, u32),
    /// Of a member: a multicast router is behind it.
    pub multicast_router: bool,
    /// VLAN tags.
    pub tags: Tags,
    /// TPID of the outer tag of a QinQ pair.
    pub outer_tpid: u16,
    /// VRF name.
    pub vrf: String,
    /// Addresses with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Largest IP packet.
    pub mtu_bytes: u16,
    /// Our MAC address.
    pub mac: [u8; 6],
    /// Anti-spoofing.
    pub source_check: SourceCheck,
    /// Lowers the MSS of TCP connections to what `mtu_bytes` carries.
    pub clamp_mss: bool,
    /// Zone slot.
    pub zone: u8,
    /// Router advertisements.
    pub advertisements: Option<Advertisements>,
    /// DHCP relays of its clients.
    pub relays: Vec<RelaySpec>,
    /// Virtual routers.
    pub routers: Vec<VirtualRouter>,
}

/// A bridge as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Name.
    pub name: String,
    /// After how many seconds a silent station is forgotten.
    pub ageing_s: u64,
    /// Frames a second from its own interface to all members.
    pub storm_pps: u32,
    /// ARP and ND are answered for stations that are known.
    pub suppress: bool,
    /// Time between two looks for loops.
    pub loop_probe: Option<std::time::Duration>,
    /// How long a member that closes a loop is shut.
    pub loop_hold: std::time::Duration,
    /// What is neither IP nor ARP passes between members in different zones.
    pub other_protocols: bool,
    /// Who listens to multicast, if that is followed.
    pub snooping: Option<Snooping>,
    /// The group of virtual routers whose Active passes frames on, or [`super::router_group::NO_GROUP`]: this node does.
    pub group: u16,
}

/// A neighbour the operator configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourSpec {
    /// Interface name.
    pub interface: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// On an overlay: the tunnel end point it is behind.
    pub remote: Option<IpAddr>,
}

/// Why the tables could not be made. The config check finds most of this earlier, with a line number.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Out of slots.
    #[error("{what}: {source}")]
    Slots {
        /// Kind of thing.
        what: &'static str,
        /// The allocator's word.
        source: NoSlot,
    },
    /// A name nobody defined.
    #[error("{what} `{name}` is not defined")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// More than 65,535 different targets.
    #[error("VRF `{vrf}` has more than 65535 different sets of next hops; let routes share next hops")]
    TooManyTargets {
        /// The VRF.
        vrf: String,
    },
    /// A pool of outside addresses cannot be had.
    #[error("the pool of nat.source `{rule}`: {source}")]
    Pool {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        source: crate::flow::nat::BadPool,
    },
    /// More than 65,535 different combinations of groups.
    #[error(
        "addresses are in more than 65535 different combinations of groups and prefix lists; let groups overlap less"
    )]
    TooManyGroupCombinations,
    /// Neighbour table too small.
    #[error("the neighbour table has no room for the next hop {address}; raise `neighbours.capacity`")]
    NeighboursFull {
        /// The next hop.
        address: IpAddr,
    },
}

pub use super::slots::NoSlot;

/// What a leaf stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LeafKey {
    /// Something that needs no configured route.
    System(Action),
    /// A configured target.
    Target(TargetId),
}

/// The control thread's working copy of one VRF.
#[derive(Clone, Debug, Default)]
struct VrfState {
    name: String,
    routes4: PrefixMap<Ipv4Net, Leaf>,
    routes6: PrefixMap<Ipv6Net, Leaf>,
    /// What must not be overridden by configured routes: connected, own, martian.
    system4: PrefixMap<Ipv4Net, LeafKey>,
    system6: PrefixMap<Ipv6Net, LeafKey>,
    keys: Vec<LeafKey>,
    leaves: AHashMap<LeafKey, Leaf>,
}

/// Compiles tables and remembers what is needed to compile a small change quickly.
pub struct Compiler {
    /// Port slots.
    pub ports: Slots,
    /// Interface slots.
    pub interfaces: Slots,
    /// VRF slots.
    pub vrfs: Slots,
    /// Numbers of bridges.
    pub bridges: Slots,
    /// Places of virtual routers in the table of roles.
    pub roles: Slots,
    /// Slots of zones, rules and pools.
    pub policy_slots: PolicySlots,
    /// Who answers for which ports of NAT addresses: shared with the workers.
    pub claims: Arc<BlockClaims>,
    /// Members of the groups of the policy compiled last.
    pub(in crate::tables) members: Option<Members>,
    /// Services compiled last, by name, with what they were compiled from.
    pub(in crate::tables) services: Vec<(Arc<VirtualServiceConfig>, Arc<VirtualService>)>,
    /// How packets get to backends that are not translated for.
    pub(in crate::tables) deliveries: Deliveries,
    /// By backend slot, of those that are not well.
    health: AHashMap<u32, Health>,
    /// Backends of services that are gone, and what those said of their flows.
    orphans: AHashMap<u32, OnFailure>,
    /// Backends of which the checks have said something that is not in the tables.
    noted: AHashSet<u32>,
    /// What the tables shared with the workers follow: static neighbours, and bridges.
    taken: (Vec<NeighbourSpec>, Arc<Bridges>),
    /// Next hops, by interface and address, that are known not to get packets any more: no route goes by them.
    failed_hops: AHashSet<(u16, IpAddr)>,
    /// They do not follow what was compiled last yet.
    is_due: bool,
    defers: bool,
    /// What the commit that is being made says of sessions that it would end.
    pub fate: Fate,
    neighbours: Arc<NeighbourTable>,
    key: Key,
    input: Input,
    /// Shared with branches.
    rib: Arc<Rib>,
    states: Vec<VrfState>,
    /// Neighbour slots the current tables refer to.
    pins: AHashMap<(u16, u128), u32>,
    tables: Arc<Tables>,
}

/// Neighbour slots that only retired tables refer to: unpin once every worker has left those.
#[derive(Debug, Default)]
pub struct Retired(Vec<u32>);

impl Retired {
    /// Gives the slots free. Only when every worker has reported the new generation.
    pub fn release(self, neighbours: &NeighbourTable) {
        for slot in self.0 {
            neighbours.unpin(slot);
        }
    }
}

/// External NAT addresses of a node: 4.8 kB of claims each.
const MAX_NAT_ADDRESSES: usize = 1024;

impl Compiler {
    /// A compiler with empty tables (generation 0), for a node whose sessions, mappings and limits are hashed with
    /// `key`.
    pub fn new(neighbours: Arc<NeighbourTable>, key: Key) -> Compiler {
        let claims = Arc::new(BlockClaims::new(MAX_NAT_ADDRESSES, key));
        let policy = Arc::new(Policy::none());
        let tables = Arc::new(Tables {
            generation: 0,
            epochs: Epochs::default(),
            ports: (0..MAX_PORTS).map(|_| PortTable::empty("")).collect(),
            interfaces: Arc::from([]),
            vrfs: Arc::from([]),
            groups: Arc::from([]),
            settings: Arc::default(),
            policy: Arc::clone(&policy),
            pairs: Arc::default(),
            backends: Backends::default(),
            overlays: Arc::default(),
            bridges: Arc::default(),
            relays: Arc::default(),
            virtual_addresses: Arc::default(),
            pair_link: None,
            on_commit: Arc::default(),
            news: Arc::default(),
        });
        let mut vrfs = Slots::default();
        // The default VRF is slot 0 for ever.
        let _ = vrfs.slot(DEFAULT_VRF, MAX_VRFS);
        Compiler {
            ports: Slots::default(),
            interfaces: Slots::default(),
            vrfs,
            bridges: Slots::default(),
            roles: Slots::default(),
            policy_slots: PolicySlots::default(),
            claims,
            members: None,
            services: Vec::new(),
            deliveries: Deliveries::default(),
            health: AHashMap::new(),
            orphans: AHashMap::new(),
            noted: AHashSet::new(),
            taken: Default::default(),
            failed_hops: AHashSet::new(),
            is_due: false,
            defers: false,
            fate: Fate::default(),
            neighbours,
            key,
            input: Input {
                settings: Settings::default(),
                ports: Vec::new(),
                interfaces: Vec::new(),
                bridges: Vec::new(),
                vrfs: Vec::new(),
                neighbours: Vec::new(),
                policy,
                pair_link: None,
            },
            rib: Arc::default(),
            states: Vec::new(),
            pins: AHashMap::new(),
            tables,
        }
    }

    /// What sessions, mappings and limits of the node are hashed with.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Next hops and hosts.
    pub fn neighbours(&self) -> &Arc<NeighbourTable> {
        &self.neighbours
    }

    /// The tables compiled last.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The configured routes.
    pub fn rib(&self) -> &Rib {
        &self.rib
    }

    /// What the tables were compiled from.
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// Slot of a VRF by name, new if need be.
    pub fn vrf_slot(&mut self, name: &str) -> Result<u16, CompileError> {
        self.vrfs.slot(name, MAX_VRFS).map_err(|source| CompileError::Slots { what: "VRFs", source })
    }

    /// Slot of an interface by name, new if need be.
    pub fn interface_slot(&mut self, name: &str) -> Result<u16, CompileError> {
        let slot = self.interfaces.slot(name, MAX_INTERFACES);
        slot.map_err(|source| CompileError::Slots { what: "interfaces", source })
    }

    /// Place of a virtual router in the table of roles by name, new if need be.
    pub fn role_slot(&mut self, name: &str) -> Result<u16, CompileError> {
        let slot = self.roles.slot(name, MAX_ROLES);
        slot.map_err(|source| CompileError::Slots { what: "virtual routers", source })
    }

    /// Keeps what was pinned for new tables. Given back: what these tables have pinned already, for one pin is enough.
    fn keep_pins(&mut self, pins: AHashMap<(u16, u128), u32>) -> Vec<u32> {
        pins.into_iter().filter_map(|(key, slot)| self.pins.insert(key, slot).map(|_| slot)).collect()
    }

    /// Compiles everything anew. On an error nothing has changed.
    pub fn compile(&mut self, input: Input, rib: Rib) -> Result<Retired, CompileError> {
        let same_routes = rib.is_same(&self.rib);
        let retired = self.compile_all(input, &rib, same_routes)?;
        self.rib = Arc::new(rib);
        Ok(retired)
    }

    /// As [`Compiler::compile`], with the routes there are.
    pub fn recompile(&mut self, input: Input) -> Result<Retired, CompileError> {
        let rib = Arc::clone(&self.rib);
        self.compile_all(input, &rib, true)
    }

    /// `same_routes`: as those of the tables there are.
    fn compile_all(&mut self, input: Input, rib: &Rib, same_routes: bool) -> Result<Retired, CompileError> {
        let slots_error = |what| move |source| CompileError::Slots { what, source };
        // Slots given to names of a refused config stay tombstones; they harm nobody.
        for port in &input.ports {
            self.ports.slot(&port.name, MAX_PORTS).map_err(slots_error("ports"))?;
        }
        for vrf in input.vrfs.iter().chain(input.interfaces.iter().map(|interface| &interface.vrf)) {
            self.vrfs.slot(vrf, MAX_VRFS).map_err(slots_error("VRFs"))?;
        }
        for interface in &input.interfaces {
            self.interface_slot(&interface.name)?;
        }
        for bridge in &input.bridges {
            self.bridges.slot(&bridge.name, MAX_BRIDGES).map_err(slots_error("bridges"))?;
        }
        let interfaces = self.build_interfaces(&input)?;
        let ports = self.build_ports(&input)?;
        let bridges = self.build_bridges(&input, &interfaces)?;
        let relays = self.build_relays(&input)?;
        let virtual_addresses = VirtualAddresses::new(&interfaces);
        let overlays = self.build_overlays(&input, &virtual_addresses)?;
        let pair_link = self.build_pair_link(&input, &interfaces, &overlays)?;
        let mut build = Build {
            interfaces: &interfaces,
            neighbours: &self.neighbours,
            rib,
            failed_hops: &self.failed_hops,
            pins: AHashMap::new(),
            groups: Vec::new(),
        };
        let generation = self.tables.generation + 1;
        let result = (0..self.vrfs.len() as u16)
            .map(|slot| {
                let mut state = VrfState { name: self.vrfs.name(slot).to_owned(), ..VrfState::default() };
                build.system_routes(slot, &mut state);
                build.configured_routes(slot, &mut state)?;
                let vrf = build.vrf(&state, generation, None)?;
                Ok((state, Arc::new(vrf)))
            })
            .collect::<Result<Vec<_>, CompileError>>()
            .and_then(|vrfs| {
                for neighbour in &input.neighbours {
                    let interface = self.interfaces.get(&neighbour.interface).ok_or_else(|| {
                        CompileError::Unknown { what: "interface", name: neighbour.interface.clone() }
                    })?;
                    build.pin(interface, neighbour.address)?;
                }
                Ok(vrfs)
            });
        let (pins, groups) = (build.pins, build.groups);
        let vrfs = match result {
            Ok(vrfs) => vrfs,
            Err(error) => {
                pins.values().for_each(|slot| self.neighbours.unpin(*slot));
                return Err(error);
            }
        };
        let (states, vrfs): (Vec<_>, Vec<_>) = vrfs.into_iter().unzip();
        // A link that has come back: its interface is up already by `change_links`, which has no connected network to give
        // back where a compilation has left that out.
        let same_connected = states.len() == self.states.len()
            && states
                .iter()
                .zip(&self.states)
                .all(|(new, old)| new.system4 == old.system4 && new.system6 == old.system6);
        self.states = states;
        // What says the same as before is no change: sessions that followed from it are not asked about it.
        let old = &*self.tables;
        let newer = |same: bool, epoch: u64| if same { epoch } else { generation };
        let same_interfaces = interfaces == old.interfaces
            && ports == old.ports
            && overlays == *old.overlays
            && bridges == *old.bridges;
        let (policy, pairs) = self.pairs_after(&input.policy, generation);
        let (backends, backends_epoch) = self.backends_after(&input.policy, generation);
        let old = &*self.tables;
        let epochs = Epochs {
            interfaces: newer(same_interfaces, old.epochs.interfaces),
            // Connected networks are routes as well.
            routes: newer(same_interfaces && same_routes && same_connected, old.epochs.routes),
            settings: newer(input.settings == *old.settings, old.epochs.settings),
            policy,
            backends: backends_epoch,
        };
        self.tables = Arc::new(Tables {
            generation,
            epochs,
            ports,
            interfaces,
            vrfs: vrfs.into(),
            groups: groups.into(),
            settings: Arc::new(input.settings.clone()),
            policy: Arc::clone(&input.policy),
            pairs,
            backends,
            overlays: Arc::new(overlays),
            bridges: Arc::new(bridges),
            relays: Arc::new(relays),
            virtual_addresses: Arc::new(virtual_addresses),
            pair_link,
            on_commit: self.on_commit_in(generation),
            news: Arc::clone(&self.tables.news),
        });
        // No worker uses tables before these any more: the caller has waited for that.
        let (kept, claims) = (Arc::clone(&self.input.policy), Arc::clone(&self.claims));
        self.policy_slots.forget_addresses(&[&kept, &input.policy], &claims);
        self.input = input;
        self.is_due = true;
        if !self.defers {
            self.take_over();
        }
        let retired = std::mem::replace(&mut self.pins, pins);
        Ok(Retired(retired.into_values().collect()))
    }

    /// Changes routes: `(vrf slot, prefix, new target or None to delete)`. Only the VRFs named are
    /// touched, and of their FIBs only what the prefixes cover. On an error nothing has changed.
    pub fn change_routes(
        &mut self,
        changes: Vec<(u16, IpNet, Option<Target>)>,
    ) -> Result<Retired, CompileError> {
        // A copy of its own only while a branch has the other.
        let rib = Arc::make_mut(&mut self.rib);
        let mut undo = Vec::with_capacity(changes.len());
        let mut touched: AHashMap<u16, Vec<IpNet>> = AHashMap::new();
        for (vrf, prefix, target) in changes {
            let before = rib.get(vrf, prefix).map(|id| rib.target(id).clone());
            let changed = match target {
                Some(target) => rib.insert(vrf, prefix, target),
                None => rib.remove(vrf, prefix),
            };
            if changed {
                undo.push((vrf, prefix, before));
                touched.entry(vrf).or_default().push(prefix.trunc());
            }
        }
        let result = self.recompile_routes(&touched);
        if result.is_err() {
            let rib = Arc::make_mut(&mut self.rib);
            for (vrf, prefix, before) in undo.into_iter().rev() {
                match before {
                    Some(target) => rib.insert(vrf, prefix, target),
                    None => rib.remove(vrf, prefix),
                };
            }
            self.undo_states(&touched);
        }
        result
    }

    /// Brings the working copies back to what the RIB says; nothing is published from them.
    fn undo_states(&mut self, touched: &AHashMap<u16, Vec<IpNet>>) {
        let tables = Arc::clone(&self.tables);
        let mut build = Build {
            interfaces: &tables.interfaces,
            neighbours: &self.neighbours,
            rib: &self.rib,
            failed_hops: &self.failed_hops,
            pins: AHashMap::new(),
            groups: tables.groups.to_vec(),
        };
        for (slot, prefixes) in touched {
            // What was compiled before compiles again: its targets and pins are known.
            let _ = build.change(*slot, &mut self.states[usize::from(*slot)], prefixes);
        }
        build.pins.values().for_each(|slot| self.neighbours.unpin(*slot));
    }

    fn recompile_routes(&mut self, touched: &AHashMap<u16, Vec<IpNet>>) -> Result<Retired, CompileError> {
        let tables = Arc::clone(&self.tables);
        let generation = tables.generation + 1;
        let mut build = Build {
            interfaces: &tables.interfaces,
            neighbours: &self.neighbours,
            rib: &self.rib,
            failed_hops: &self.failed_hops,
            pins: AHashMap::new(),
            groups: tables.groups.to_vec(),
        };
        let mut vrfs = tables.vrfs.to_vec();
        for (slot, prefixes) in touched {
            // Small changes patch the working copy in place and take it back on an error.
            let state = &mut self.states[usize::from(*slot)];
            let changed = build.change(*slot, state, prefixes);
            let old = &tables.vrfs[usize::from(*slot)];
            let made = changed.and_then(|changed| build.vrf(state, generation, Some((old, &changed))));
            match made {
                Ok(vrf) => {
                    vrfs[usize::from(*slot)] = Arc::new(vrf);
                }
                Err(error) => {
                    build.pins.values().for_each(|slot| self.neighbours.unpin(*slot));
                    return Err(error);
                }
            }
        }
        let (pins, groups) = (build.pins, build.groups);
        let retired = self.keep_pins(pins);
        let prefixes = touched.values().flatten();
        let ranges: Vec<_> = prefixes.map(|prefix| (prefix.network(), prefix.broadcast())).collect();
        let (routes, news) = match self.news_after(Some(&ranges), generation) {
            Some(news) => (tables.epochs.routes, news),
            None => (generation, Arc::clone(&tables.news)),
        };
        self.tables = Arc::new(Tables {
            generation,
            epochs: Epochs { routes, ..tables.epochs },
            ports: Arc::clone(&tables.ports),
            interfaces: Arc::clone(&tables.interfaces),
            vrfs: vrfs.into(),
            groups: groups.into(),
            settings: Arc::clone(&tables.settings),
            policy: Arc::clone(&tables.policy),
            pairs: Arc::clone(&tables.pairs),
            backends: tables.backends.clone(),
            overlays: Arc::clone(&tables.overlays),
            bridges: Arc::clone(&tables.bridges),
            relays: Arc::clone(&tables.relays),
            virtual_addresses: Arc::clone(&tables.virtual_addresses),
            pair_link: tables.pair_link.clone(),
            on_commit: self.on_commit_in(generation),
            news,
        });
        Ok(Retired(retired))
    }

    /// What commits have said, with the one that is being made.
    fn on_commit_in(&self, generation: u64) -> Arc<OnCommit> {
        let before = &self.tables.on_commit;
        if self.fate.is_usual() { Arc::clone(before) } else { Arc::new(before.with(generation, self.fate)) }
    }

    /// The news with a change about these addresses; `None`: it matters to everybody, for there are too many of them, or for
    /// what the commit says of sessions.
    fn news_after(&self, ranges: Option<&[(IpAddr, IpAddr)]>, generation: u64) -> Option<Arc<News>> {
        let ranges = ranges.filter(|_| self.fate.is_usual())?;
        self.tables.news.with(ranges, generation).map(Arc::new)
    }

    /// The epochs with another policy.
    fn pairs_after(&self, policy: &Policy, generation: u64) -> (u64, Arc<PairEpochs>) {
        self.epochs_after(&self.tables.policy.touched(policy, &self.policy_slots), generation)
    }

    fn epochs_after(&self, touched: &Touched, generation: u64) -> (u64, Arc<PairEpochs>) {
        let (newest, pairs) = (self.tables.epochs.policy, &self.tables.pairs);
        if touched.is_nothing() {
            return (newest, Arc::clone(pairs));
        }
        (generation, Arc::new(pairs.after(touched, generation)))
    }

    /// How much backends take with the services of another policy, and since when flows have to follow that.
    fn backends_after(&mut self, policy: &Policy, generation: u64) -> (Backends, u64) {
        let tables = Arc::clone(&self.tables);
        let (old, new) = (tables.policy.services(), policy.services());
        let mut changed: AHashMap<u32, BackendState> = AHashMap::new();
        if !std::ptr::eq(old, new) {
            let (went, came) = old.difference(new);
            for backend in went.iter().flat_map(|service| &service.backends) {
                changed.insert(backend.slot, BackendState::left(self.orphans.get(&backend.slot).copied()));
            }
            let stays: AHashSet<u16> = came.iter().map(|service| service.slot).collect();
            let gone = went.iter().filter(|service| !stays.contains(&service.slot));
            let gone: AHashMap<&str, OnFailure> = gone
                .map(|gone| (self.policy_slots.services.name(gone.slot), gone.behaviour.on_failure))
                .collect();
            // To keep what there is is a word of its own.
            if !gone.is_empty() && self.fate != Fate::Keep {
                // Flows of a service that is gone follow its word; those of a backend that left its service do not. Also
                // those that left it before: by their names.
                for (slot, name) in (0..).zip(self.policy_slots.backends.names()) {
                    if let Some(word) = gone.get(policy::service_of(name)) {
                        self.orphans.insert(slot, *word);
                        changed.insert(slot, BackendState::left(Some(*word)));
                    }
                }
            }
            for service in came {
                for backend in &service.backends {
                    self.orphans.remove(&backend.slot);
                    let health = self.health(backend.slot);
                    let state = BackendState::of(service, backend, health);
                    let is_kept = self.fate == Fate::Keep && health.up;
                    changed.insert(backend.slot, if is_kept { state.kept() } else { state });
                }
            }
        }
        let noted = std::mem::take(&mut self.noted);
        if !noted.is_empty() {
            let services: AHashMap<u16, &Arc<VirtualService>> =
                new.list().iter().map(|service| (service.slot, service)).collect();
            for slot in noted {
                let service = tables.backends.state(slot).service.and_then(|slot| services.get(&slot));
                let in_it = |service: &&Arc<VirtualService>| {
                    let backend = service.backends.iter().find(|backend| backend.slot == slot)?;
                    Some(BackendState::of(service, backend, self.health(slot)))
                };
                if let Some(state) = service.and_then(in_it) {
                    changed.insert(slot, state);
                }
            }
        }
        let (backends, is_news) = tables.backends.after(changed, generation);
        (backends, if is_news { generation } else { tables.epochs.backends })
    }

    /// What the checks say of a backend; nothing follows from it before [`Compiler::change_health`].
    pub fn note_health(&mut self, backend: u32, health: Health) {
        self.noted.insert(backend);
        if health == Health::WELL {
            self.health.remove(&backend);
        } else {
            self.health.insert(backend, health);
        }
    }

    /// What the checks said last of a backend.
    pub fn health(&self, backend: u32) -> Health {
        self.health.get(&backend).copied().unwrap_or(Health::WELL)
    }

    /// Backends that are down, or put out.
    pub fn unhealthy(&self) -> usize {
        self.health.values().filter(|health| !health.up).count()
    }

    /// What the checks have said, everything else as it is.
    pub fn change_health(&mut self) -> Retired {
        let policy = Arc::clone(&self.tables.policy);
        self.put_policy(policy, &Touched::default())
    }

    /// Another policy, everything else as it is. Flows between zones that it says something new of ask it on their
    /// next packet.
    pub fn change_policy(&mut self, policy: Arc<Policy>) -> Retired {
        let touched = self.tables.policy.touched(&policy, &self.policy_slots);
        self.put_policy(policy, &touched)
    }

    /// The same, where it is known whose sessions it may decide otherwise.
    pub fn put_policy(&mut self, policy: Arc<Policy>, touched: &Touched) -> Retired {
        let tables = Arc::clone(&self.tables);
        let generation = tables.generation + 1;
        let ((newest, pairs), news) = match self.news_after(touched.ranges(), generation) {
            Some(news) => ((tables.epochs.policy, Arc::clone(&tables.pairs)), news),
            None => (self.epochs_after(touched, generation), Arc::clone(&tables.news)),
        };
        let (backends, backends_epoch) = self.backends_after(&policy, generation);
        self.tables = Arc::new(Tables {
            generation,
            epochs: Epochs { policy: newest, backends: backends_epoch, ..tables.epochs },
            ports: Arc::clone(&tables.ports),
            interfaces: Arc::clone(&tables.interfaces),
            vrfs: Arc::clone(&tables.vrfs),
            groups: Arc::clone(&tables.groups),
            settings: Arc::clone(&tables.settings),
            policy: Arc::clone(&policy),
            pairs,
            backends,
            overlays: Arc::clone(&tables.overlays),
            bridges: Arc::clone(&tables.bridges),
            relays: Arc::clone(&tables.relays),
            virtual_addresses: Arc::clone(&tables.virtual_addresses),
            pair_link: tables.pair_link.clone(),
            on_commit: self.on_commit_in(generation),
            news,
        });
        // As in `compile`: addresses of the policy still in use stay known.
        let (kept, claims) = (Arc::clone(&self.input.policy), Arc::clone(&self.claims));
        self.policy_slots.forget_addresses(&[&kept, &policy], &claims);
        self.input.policy = policy;
        Retired(Vec::new())
    }

    /// Ports went up or down: the quick first answer. Interfaces and actions follow at once; routes
    /// that lost their last next hop answer "no route" until [`Compiler::compile`] has rebuilt the FIBs.
    pub fn change_links(&mut self, ports: &[PortSpec]) -> Result<Retired, CompileError> {
        let mut input = self.input.clone();
        for port in &mut input.ports {
            if let Some(new) = ports.iter().find(|new| new.name == port.name) {
                port.members_up = new.members_up;
            }
        }
        let interfaces = self.build_interfaces(&input)?;
        let port_tables = self.build_ports(&input)?;
        let tables = Arc::clone(&self.tables);
        let generation = tables.generation + 1;
        let mut build = Build {
            interfaces: &interfaces,
            neighbours: &self.neighbours,
            rib: &self.rib,
            failed_hops: &self.failed_hops,
            pins: AHashMap::new(),
            groups: tables.groups.to_vec(),
        };
        let mut vrfs = Vec::with_capacity(tables.vrfs.len());
        for (slot, old) in tables.vrfs.iter().enumerate() {
            let actions = build.actions(&self.states[slot], &[])?;
            vrfs.push(Arc::new(Vrf {
                name: old.name.clone(),
                mark: old.mark,
                epoch: if actions == old.actions { old.epoch } else { generation },
                fib4: Arc::clone(&old.fib4),
                fib6: Arc::clone(&old.fib6),
                actions,
            }));
        }
        let (pins, groups) = (build.pins, build.groups);
        let retired = self.keep_pins(pins);
        self.tables = Arc::new(Tables {
            generation,
            epochs: Epochs { interfaces: generation, routes: generation, ..tables.epochs },
            ports: port_tables,
            interfaces,
            vrfs: vrfs.into(),
            groups: groups.into(),
            settings: Arc::clone(&tables.settings),
            policy: Arc::clone(&tables.policy),
            pairs: Arc::clone(&tables.pairs),
            backends: tables.backends.clone(),
            overlays: Arc::clone(&tables.overlays),
            bridges: Arc::clone(&tables.bridges),
            relays: Arc::clone(&tables.relays),
            virtual_addresses: Arc::clone(&tables.virtual_addresses),
            pair_link: tables.pair_link.clone(),
            on_commit: self.on_commit_in(generation),
            news: Arc::clone(&tables.news),
        });
        self.input = input;
        Ok(Retired(retired))
    }

    /// Next hops that no route goes by, by interface and address.
    pub fn failed_hops(&self) -> &AHashSet<(u16, IpAddr)> {
        &self.failed_hops
    }

    /// True if routes go by a next hop: its interface is up, and it has not failed.
    pub fn is_usable(&self, interfaces: &[Interface], hop: &Hop) -> bool {
        on_link(interfaces, hop).is_some_and(|slot| {
            interfaces[usize::from(slot)].up && !self.failed_hops.contains(&(slot, hop.address))
        })
    }

    /// Next hops have failed or have come back: the quick first answer, as of [`Compiler::change_links`].
    pub fn change_failed_hops(&mut self, failed: AHashSet<(u16, IpAddr)>) -> Result<Retired, CompileError> {
        self.failed_hops = failed;
        let ports = self.input.ports.clone();
        self.change_links(&ports)
    }

    /// As [`Compiler::recompile`] with what there is, after next hops have failed or have come back: routes that lost their
    /// last one give way to less specific ones.
    pub fn recompile_routes_anew(&mut self) -> Result<Retired, CompileError> {
        let rib = Arc::clone(&self.rib);
        self.compile_all(self.input.clone(), &rib, false)
    }

    /// From now on [`Compiler::take_over`] has to be called before tables are published: whoever may throw away what was
    /// compiled leaves the tables that are shared with the workers as they are until then.
    pub fn defer(&mut self) {
        self.defers = true;
    }

    /// Has the tables that are shared with the workers follow what was compiled last: static neighbours, stations and
    /// remotes.
    pub fn take_over(&mut self) {
        if !std::mem::take(&mut self.is_due) {
            return;
        }
        let bridges = Arc::clone(&self.tables.bridges);
        self.apply_static_neighbours();
        for (number, before) in (0..self.bridges.len() as u16).map(|n| (n, self.taken.1.get(n))) {
            if let (Some(before), Some(now)) = (before, bridges.get(number))
                && now.renumbers(before)
            {
                self.neighbours.macs.forget_remotes(now.segment);
            }
        }
        self.taken = (self.input.neighbours.clone(), bridges);
    }

    fn build_interfaces(&self, input: &Input) -> Result<Arc<[Interface]>, CompileError> {
        let mut interfaces: Vec<Interface> =
            (0..self.interfaces.len() as u16).map(|slot| tombstone(self.interfaces.name(slot))).collect();
        let port_is_up = |spec: &InterfaceSpec| {
            input.ports.iter().any(|port| Some(&port.name) == spec.port.as_ref() && port.members_up != 0)
        };
        // Some link that tunnels may go by. Which does is a matter of routes.
        let underlay_is_up = |vrf: &str| {
            let carries = |other: &&InterfaceSpec| {
                other.bridge.is_none() && other.overlay.is_none() && other.vrf == vrf
            };
            input.interfaces.iter().filter(carries).any(port_is_up)
        };
        let link_is_up = |spec: &InterfaceSpec| match &spec.overlay {
            Some(overlay) => underlay_is_up(&overlay.underlay_vrf),
            None => port_is_up(spec),
        };
        let mut overlays = 0..NO_OVERLAY;
        for spec in &input.interfaces {
            let unknown = |what, name: &str| CompileError::Unknown { what, name: name.to_owned() };
            let slot = self.interfaces.get(&spec.name).ok_or_else(|| unknown("interface", &spec.name))?;
            let vrf = self.vrfs.get(&spec.vrf).ok_or_else(|| unknown("VRF", &spec.vrf))?;
            let bridge = match &spec.bridge {
                Some(name) => self.bridges.get(name).ok_or_else(|| unknown("bridge", name))?,
                None => NO_BRIDGE,
            };
            let is_same = |other: &&InterfaceSpec| other.bridge == spec.bridge;
            let made = match (&spec.overlay, &spec.port) {
                (Some(_), _) => {
                    let number = overlays.next().unwrap_or(NO_OVERLAY);
                    interface(spec, (NO_PORT, number), vrf, link_is_up(spec))
                }
                // A bridge is up as long as one of its members is.
                (None, None) if spec.bridge.is_some() => {
                    let up = input.interfaces.iter().filter(is_same).any(link_is_up);
                    interface(spec, (NO_PORT, NO_OVERLAY), vrf, up)
                }
                (None, port) => {
                    let name = port.as_deref().unwrap_or_default();
                    let port = self.ports.get(name).ok_or_else(|| unknown("port", name))?;
                    interface(spec, (port, NO_OVERLAY), vrf, link_is_up(spec))
                }
            };
            interfaces[usize::from(slot)] = Interface { bridge, ..made };
        }
        Ok(interfaces.into())
    }

    fn build_pair_link(
        &self,
        input: &Input,
        interfaces: &[Interface],
        overlays: &Overlays,
    ) -> Result<Option<Arc<PairLink>>, CompileError> {
        let Some(spec) = &input.pair_link else { return Ok(None) };
        let unknown = || CompileError::Unknown { what: "interface", name: spec.interface.clone() };
        let slot = self.interfaces.get(&spec.interface).ok_or_else(unknown)?;
        Ok(Some(Arc::new(PairLink::new(spec, slot, interfaces, overlays))))
    }

    fn build_bridges(&self, input: &Input, interfaces: &[Interface]) -> Result<Bridges, CompileError> {
        let mut all: Vec<Option<Bridge>> = (0..self.bridges.len()).map(|_| None).collect();
        for spec in &input.bridges {
            let unknown = |what, name: &str| CompileError::Unknown { what, name: name.to_owned() };
            let number = self.bridges.get(&spec.name).ok_or_else(|| unknown("bridge", &spec.name))?;
            let mut bridge = Bridge {
                name: spec.name.clone(),
                mark: !super::mark_of(&spec.name),
                segment: Bridges::segment(number),
                interface: NO_INTERFACE,
                members: Vec::new(),
                ageing_s: spec.ageing_s,
                storm_pps: spec.storm_pps,
                suppress: spec.suppress,
                loop_probe: spec.loop_probe,
                loop_hold: spec.loop_hold,
                has_zones: false,
                other_protocols: spec.other_protocols,
                snooping: spec.snooping,
                group: spec.group,
            };
            let mut vnis = 0..crate::macs::MAX_VNIS as u8;
            for end in input.interfaces.iter().filter(|end| end.bridge.as_ref() == Some(&spec.name)) {
                let slot = self.interfaces.get(&end.name).ok_or_else(|| unknown("interface", &end.name))?;
                let interface = &interfaces[usize::from(slot)];
                if interface.is_segment() {
                    bridge.interface = slot;
                    continue;
                }
                let (max_macs, storm_pps) = end.limits;
                let vni = match interface.overlay {
                    NO_OVERLAY => None,
                    overlay => vnis.next().map(|vni| (vni, overlay)),
                };
                let multicast_router = end.multicast_router;
                bridge.members.push(Member { interface: slot, vni, max_macs, storm_pps, multicast_router });
            }
            // The config check has seen to it that it is all of them, or none.
            bridge.has_zones =
                bridge.members.iter().any(|member| interfaces[usize::from(member.interface)].zone != NO_ZONE);
            all[usize::from(number)] = Some(bridge);
        }
        Ok(Bridges::new(all))
    }

    /// In the order of their interfaces, as [`Compiler::build_interfaces`] numbers them.
    fn build_overlays(&self, input: &Input, held: &VirtualAddresses) -> Result<Overlays, CompileError> {
        let mut all = Vec::new();
        for spec in &input.interfaces {
            let Some(overlay) = &spec.overlay else { continue };
            let unknown = |what, name: &str| CompileError::Unknown { what, name: name.to_owned() };
            let slot = self.interfaces.get(&spec.name).ok_or_else(|| unknown("interface", &spec.name))?;
            let vrf = &overlay.underlay_vrf;
            let vrf = self.vrfs.get(vrf).ok_or_else(|| unknown("VRF", vrf))?;
            let router = held.find(vrf, addr_key(overlay.vtep));
            all.push(Overlay::new(overlay, slot, vrf, router));
        }
        Ok(Overlays::new(all))
    }

    fn build_relays(&self, input: &Input) -> Result<Relays, CompileError> {
        let unknown = |what, name: &str| CompileError::Unknown { what, name: name.to_owned() };
        let mut all = Vec::new();
        for interface in input.interfaces.iter().filter(|interface| !interface.relays.is_empty()) {
            let name = &interface.name;
            let slot = self.interfaces.get(name).ok_or_else(|| unknown("interface", name))?;
            for relay in &interface.relays {
                let vrf = self.vrfs.get(&relay.vrf).ok_or_else(|| unknown("VRF", &relay.vrf))?;
                all.push(Relay::new(relay, slot, vrf));
            }
        }
        Ok(Relays::new(all))
    }

    fn build_ports(&self, input: &Input) -> Result<Arc<[PortTable]>, CompileError> {
        // One for every slot there can be: a port's sockets receive from the moment they are bound, which
        // may be before the first snapshot that knows the port.
        let name = |slot| if slot < self.ports.len() { self.ports.name(slot as u16) } else { "" };
        let mut ports: Vec<PortTable> = (0..MAX_PORTS).map(|slot| PortTable::empty(name(slot))).collect();
        for spec in &input.ports {
            if let Some(slot) = self.ports.get(&spec.name) {
                ports[usize::from(slot)].lag = spec.lag;
                ports[usize::from(slot)].members_up = spec.members_up;
            }
        }
        for spec in &input.interfaces {
            let port = spec.port.as_ref().and_then(|port| self.ports.get(port));
            let (Some(interface), Some(port)) = (self.interfaces.get(&spec.name), port) else { continue };
            let port = &mut ports[usize::from(port)];
            match spec.tags {
                Tags { outer: 0, .. } => port.untagged = interface,
                Tags { outer, inner: 0 } => {
                    let by_vlan = port.by_vlan.get_or_insert_with(|| Box::new([NO_INTERFACE; 4096]));
                    by_vlan[usize::from(outer & 0xfff)] = interface;
                }
                Tags { outer, inner } => {
                    port.by_pair.insert((outer, inner), interface);
                }
            }
        }
        Ok(ports.into())
    }
}

/// Name of the VRF of whatever names none.
pub const DEFAULT_VRF: &str = "default";

/// What a deleted interface's slot holds.
fn tombstone(name: &str) -> Interface {
    Interface {
        mac: 0,
        header: [0; MAX_LINK_HEADER],
        header_len: 14,
        up: false,
        mtu_bytes: 0,
        vrf: 0,
        port: 0,
        overlay: NO_OVERLAY,
        bridge: NO_BRIDGE,
        source_check: SourceCheck::Off,
        clamp_mss: false,
        zone: 0,
        info: Arc::new(InterfaceInfo {
            name: name.to_owned(),
            tags: Tags::default(),
            v4: vec![],
            v6: vec![],
            link_local: None,
            advertisements: None,
            routers: vec![],
        }),
    }
}

fn interface(spec: &InterfaceSpec, (port, overlay): (u16, u16), vrf: u16, up: bool) -> Interface {
    let mut header = [0; MAX_LINK_HEADER];
    header[6..12].copy_from_slice(&spec.mac);
    let mut len = 12;
    let mut tag = |tpid: u16, vlan: u16| {
        header[len..len + 2].copy_from_slice(&tpid.to_be_bytes());
        header[len + 2..len + 4].copy_from_slice(&vlan.to_be_bytes());
        len += 4;
    };
    match spec.tags {
        Tags { outer: 0, .. } => {}
        Tags { outer, inner: 0 } => tag(ethertype::VLAN, outer),
        Tags { outer, inner } => {
            tag(spec.outer_tpid, outer);
            tag(ethertype::VLAN, inner);
        }
    }
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    let mut link_local = None;
    for (address, prefix_len) in &spec.addresses {
        match address {
            IpAddr::V4(address) => v4.push((*address, *prefix_len)),
            IpAddr::V6(address) if address.is_unicast_link_local() => link_local = Some(*address),
            IpAddr::V6(address) => v6.push((*address, *prefix_len)),
        }
    }
    if link_local.is_none() && !v6.is_empty() {
        link_local = Some(eui64_link_local(spec.mac));
    }
    Interface {
        mac: mac_to_u64(spec.mac),
        header,
        header_len: len as u8 + 2,
        up,
        mtu_bytes: spec.mtu_bytes,
        vrf,
        port,
        overlay,
        bridge: NO_BRIDGE,
        source_check: spec.source_check,
        clamp_mss: spec.clamp_mss,
        zone: spec.zone,
        info: Arc::new(InterfaceInfo {
            name: spec.name.clone(),
            tags: spec.tags,
            v4,
            v6,
            link_local,
            advertisements: spec.advertisements,
            routers: spec.routers.clone(),
        }),
    }
}

/// The interface on which `hop` is on-link.
pub fn on_link(interfaces: &[Interface], hop: &Hop) -> Option<u16> {
    if let Some(slot) = hop.interface {
        // What is there no more is not up.
        return interfaces.get(usize::from(slot)).filter(|interface| interface.vrf == hop.vrf).map(|_| slot);
    }
    interfaces
        .iter()
        .position(|interface| interface.vrf == hop.vrf && reaches(interface, hop.address))
        .map(|at| at as u16)
}

/// The link-local address made from a MAC address (RFC 4291 appendix A).
pub fn eui64_link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// One compilation under way.
struct Build<'a> {
    interfaces: &'a [Interface],
    neighbours: &'a NeighbourTable,
    rib: &'a Rib,
    failed_hops: &'a AHashSet<(u16, IpAddr)>,
    pins: AHashMap<(u16, u128), u32>,
    groups: Vec<Arc<Group>>,
}

/// Prefixes whose leaf changed.
struct Changed {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Build<'_> {
    fn pin(&mut self, interface: u16, address: IpAddr) -> Result<u32, CompileError> {
        let key = addr_key(address);
        if let Some(slot) = self.pins.get(&(interface, key)) {
            return Ok(*slot);
        }
        let slot =
            self.neighbours.pin(interface, key).map_err(|_| CompileError::NeighboursFull { address })?;
        self.pins.insert((interface, key), slot);
        Ok(slot)
    }

    /// The interface on which `hop` is on-link.
    fn on_link(&self, hop: &Hop) -> Option<u16> {
        on_link(self.interfaces, hop)
    }

    /// What tells a next hop from others of its route, on every node: its address, and with a link-local one, which
    /// may be there on several links, the name of the interface (FNV-1a).
    fn hop_key(&self, hop: &Hop) -> u128 {
        let name = hop.interface.map_or("", |slot| &self.interfaces[usize::from(slot)].info.name);
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = if name.is_empty() { 0 } else { name.bytes().fold(0xcbf2_9ce4_8422_2325, fold) };
        addr_key(hop.address) ^ u128::from(hash) << 64
    }

    fn resolve(&mut self, target: &Target) -> Result<Action, CompileError> {
        let hops = match target {
            Target::Blackhole => return Ok(Action::Drop(DropReason::Blackhole)),
            Target::Unreachable => return Ok(Action::Drop(DropReason::UnreachableRoute)),
            Target::Vrf(vrf) => return Ok(Action::Vrf(*vrf)),
            Target::Via(hops) => hops,
        };
        let mut live = Vec::with_capacity(hops.len());
        for hop in hops {
            if let Some(interface) = self.on_link(hop)
                && self.interfaces[usize::from(interface)].up
                && !self.failed_hops.contains(&(interface, hop.address))
            {
                let neighbour = self.pin(interface, hop.address)?;
                live.push((NextHop { interface, neighbour }, self.hop_key(hop)));
            }
        }
        Ok(match live.as_slice() {
            [] => Action::NoRoute,
            [(hop, _)] => Action::Via(*hop),
            _ => {
                let group = Arc::new(Group::compile(&live));
                let known = self.groups.iter().position(|known| *known == group);
                let index = known.unwrap_or_else(|| {
                    self.groups.push(group);
                    self.groups.len() - 1
                });
                Action::Ecmp(index as u32)
            }
        })
    }

    /// Martians, our own addresses and connected networks of a VRF.
    fn system_routes(&self, vrf: u16, state: &mut VrfState) {
        let key = |action| LeafKey::System(action);
        for (net, reason) in reserved_v4() {
            state.system4.insert(net, key(Action::Drop(reason)));
        }
        for (net, reason) in reserved_v6() {
            state.system6.insert(net, key(Action::Drop(reason)));
        }
        for (slot, interface) in self.interfaces.iter().enumerate().filter(|(_, i)| i.vrf == vrf && i.up) {
            let connected = key(Action::Connected { interface: slot as u16 });
            for (address, len) in &interface.info.v4 {
                let net = Ipv4Net::new(*address, *len).expect("checked by config").trunc();
                state.system4.insert(net, connected);
                // RFC 3021: a /31 has neither network nor broadcast address.
                if *len < 31 {
                    let edge = key(Action::Drop(DropReason::BroadcastNotForwarded));
                    state.system4.insert(Ipv4Net::from(net.network()), edge);
                    state.system4.insert(Ipv4Net::from(net.broadcast()), edge);
                }
            }
            for (address, len) in &interface.info.v6 {
                state
                    .system6
                    .insert(Ipv6Net::new(*address, *len).expect("checked by config").trunc(), connected);
            }
        }
        // Own addresses last: they win over everything, also where prefixes overlap.
        for interface in self.interfaces.iter().filter(|i| i.vrf == vrf && i.up) {
            for (address, _) in &interface.info.v4 {
                state.system4.insert(Ipv4Net::from(*address), key(Action::Local));
            }
            for (address, _) in &interface.info.v6 {
                state.system6.insert(Ipv6Net::from(*address), key(Action::Local));
            }
            // Whoever the Active is: that is asked when a packet to them is here.
            for address in interface.info.routers.iter().flat_map(|router| &router.addresses) {
                match address {
                    IpAddr::V4(address) => _ = state.system4.insert((*address).into(), key(Action::Local)),
                    IpAddr::V6(address) if address.is_unicast_link_local() => {}
                    IpAddr::V6(address) => _ = state.system6.insert((*address).into(), key(Action::Local)),
                }
            }
        }
    }

    fn leaf(state: &mut VrfState, key: LeafKey) -> Result<Leaf, CompileError> {
        if state.keys.is_empty() {
            state.keys.push(LeafKey::System(Action::NoRoute));
        }
        if let Some(leaf) = state.leaves.get(&key) {
            return Ok(*leaf);
        }
        let leaf = Leaf::try_from(state.keys.len())
            .map_err(|_| CompileError::TooManyTargets { vrf: state.name.clone() })?;
        state.keys.push(key);
        state.leaves.insert(key, leaf);
        Ok(leaf)
    }

    /// The leaf of a prefix: what the system says, else what is configured and usable.
    fn leaf_of(
        &mut self,
        state: &mut VrfState,
        system: Option<LeafKey>,
        target: Option<TargetId>,
    ) -> Result<Option<Leaf>, CompileError> {
        if let Some(key) = system {
            return Self::leaf(state, key).map(Some);
        }
        let Some(id) = target else { return Ok(None) };
        let key = LeafKey::Target(id);
        if let Some(leaf) = state.leaves.get(&key) {
            return Ok(Some(*leaf));
        }
        // A target without a usable next hop makes no route, so that a less specific one takes over.
        let rib = self.rib;
        if self.resolve(rib.target(id))? == Action::NoRoute {
            return Ok(None);
        }
        Self::leaf(state, key).map(Some)
    }

    fn configured_routes(&mut self, vrf: u16, state: &mut VrfState) -> Result<(), CompileError> {
        let rib = self.rib;
        let mut routes4 = PrefixMap::new();
        let mut routes6 = PrefixMap::new();
        if let Some(routes) = rib.routes(vrf) {
            // Targets repeat from route to route: remember the answer, usable or not.
            let mut known: AHashMap<TargetId, Option<Leaf>> = AHashMap::new();
            let mut leaf_of = |build: &mut Self, state: &mut VrfState, id| match known.get(&id) {
                Some(leaf) => Ok::<_, CompileError>(*leaf),
                None => {
                    let leaf = build.leaf_of(state, None, Some(id))?;
                    known.insert(id, leaf);
                    Ok(leaf)
                }
            };
            for (net, id) in &routes.v4 {
                if let Some(leaf) = leaf_of(self, state, *id)? {
                    routes4.insert(net, leaf);
                }
            }
            for (net, id) in &routes.v6 {
                if let Some(leaf) = leaf_of(self, state, *id)? {
                    routes6.insert(net, leaf);
                }
            }
        }
        for (net, key) in state.system4.clone() {
            routes4.insert(net, Self::leaf(state, key)?);
        }
        for (net, key) in state.system6.clone() {
            routes6.insert(net, Self::leaf(state, key)?);
        }
        state.routes4 = routes4;
        state.routes6 = routes6;
        Ok(())
    }

    /// Brings the working copy up to date for `prefixes`.
    fn change(
        &mut self,
        vrf: u16,
        state: &mut VrfState,
        prefixes: &[IpNet],
    ) -> Result<Changed, CompileError> {
        let mut changed = Changed { v4: vec![], v6: vec![] };
        for prefix in prefixes {
            let target = self.rib.get(vrf, *prefix);
            match prefix {
                IpNet::V4(net) => {
                    let system = state.system4.get(net).copied();
                    let leaf = self.leaf_of(state, system, target)?;
                    let old = match leaf {
                        Some(leaf) => state.routes4.insert(*net, leaf),
                        None => state.routes4.remove(net),
                    };
                    if old != leaf {
                        changed.v4.push(*net);
                    }
                }
                IpNet::V6(net) => {
                    let system = state.system6.get(net).copied();
                    let leaf = self.leaf_of(state, system, target)?;
                    let old = match leaf {
                        Some(leaf) => state.routes6.insert(*net, leaf),
                        None => state.routes6.remove(net),
                    };
                    if old != leaf {
                        changed.v6.push(*net);
                    }
                }
            }
        }
        Ok(changed)
    }

    /// What the leaves mean now. `known`: the answers of tables with the same interfaces.
    fn actions(&mut self, state: &VrfState, known: &[Action]) -> Result<Box<[Action]>, CompileError> {
        let rib = self.rib;
        let mut actions = Vec::with_capacity(state.keys.len().max(1));
        actions.extend_from_slice(known);
        for key in state.keys.iter().skip(known.len()) {
            actions.push(match key {
                LeafKey::System(Action::Connected { interface })
                    if !self.interfaces[usize::from(*interface)].up =>
                {
                    Action::NoRoute
                }
                LeafKey::System(action) => *action,
                LeafKey::Target(id) => self.resolve(rib.target(*id))?,
            });
        }
        if actions.is_empty() {
            actions.push(Action::NoRoute);
        }
        Ok(actions.into())
    }

    fn vrf(
        &mut self,
        state: &VrfState,
        epoch: u64,
        old: Option<(&Arc<Vrf>, &Changed)>,
    ) -> Result<Vrf, CompileError> {
        let known = old.map_or(&[][..], |(old, _)| &old.actions);
        let actions = self.actions(state, known)?;
        let (fib4, fib6) = match old {
            Some((old, changed)) => (
                if changed.v4.is_empty() {
                    Arc::clone(&old.fib4)
                } else {
                    Arc::new(old.fib4.with_changes(&state.routes4, &changed.v4))
                },
                if changed.v6.is_empty() {
                    Arc::clone(&old.fib6)
                } else {
                    Arc::new(old.fib6.with_changes(&state.routes6, &changed.v6))
                },
            ),
            None => (
                Arc::new(Fib4::compile(state.routes4.iter().map(|(net, leaf)| (net, *leaf)))),
                Arc::new(Fib6::compile(state.routes6.iter().map(|(net, leaf)| (net, *leaf)))),
            ),
        };
        Ok(Vrf { name: state.name.clone(), mark: super::mark_of(&state.name), epoch, fib4, fib6, actions })
    }
}

fn reaches(interface: &Interface, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => interface.info.v4.iter().any(|(own, len)| same_prefix_v4(*own, address, *len)),
        IpAddr::V6(address) => interface.info.v6.iter().any(|(own, len)| same_prefix_v6(*own, address, *len)),
    }
}

/// IPv4 destinations that are never routed (RFC 1812 section 5.3.7, RFC 6890, RFC 3927 section 2.7).
fn reserved_v4() -> impl Iterator<Item = (Ipv4Net, DropReason)> {
    use DropReason::*;
    [
        ([0, 0, 0, 0], 8, MartianDestination),
        ([127, 0, 0, 0], 8, MartianDestination),
        ([240, 0, 0, 0], 4, MartianDestination),
        ([169, 254, 0, 0], 16, LinkLocalNotRouted),
        ([224, 0, 0, 0], 4, MulticastNotRouted),
        ([255, 255, 255, 255], 32, BroadcastNotForwarded),
    ]
    .into_iter()
    .map(|(addr, len, reason)| (Ipv4Net::new(Ipv4Addr::from(addr), len).expect("literal"), reason))
}

/// IPv6 destinations that are never routed (RFC 4291, RFC 6890).
fn reserved_v6() -> impl Iterator<Item = (Ipv6Net, DropReason)> {
    use DropReason::*;
    [
        ("::/128", MartianDestination),
        ("::1/128", MartianDestination),
        ("::ffff:0:0/96", MartianDestination),
        ("fe80::/10", LinkLocalNotRouted),
        ("ff00::/8", MulticastNotRouted),
    ]
    .into_iter()
    .map(|(net, reason)| (net.parse().expect("literal"), reason))
}
