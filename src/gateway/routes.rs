//! `show routes`: pages of the routes in force, each made from where the page before ended.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Gateway;
use crate::config::{InterfaceName, Prefix, VrfName};
use crate::control::{Fault, RouteEntry, RouteKey, RouteKind, RoutePage, RouteSource, RoutesQuery, ViaEntry};
use crate::tables::compile::on_link;
use crate::tables::rib::{Hop, Target, VrfRoutes};

/// A route before it is put into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Connected(u16),
    Local(u16),
    Static(u32),
}

/// Routes of a VRF behind `after`, ordered by prefix: `most` of them (1 or more), and all of the last one's prefix. The second is
/// true if there are more. `system` is ordered.
fn routes_behind(
    after: Option<IpNet>,
    most: usize,
    system: &[(IpNet, Found)],
    configured: Option<&VrfRoutes>,
) -> (Vec<(IpNet, Found)>, bool) {
    let behind = system.iter().filter(|(net, _)| after.is_none_or(|after| *net > after));
    let mut found: Vec<(IpNet, Found)> = behind.copied().collect();
    if let Some(VrfRoutes { v4, v6 }) = configured {
        let v4 = match after {
            Some(IpNet::V4(after)) => Some(v4.iter_from(&after, false)),
            Some(IpNet::V6(_)) => None,
            None => Some(v4.iter()),
        };
        let v6 = match after {
            Some(IpNet::V6(after)) => v6.iter_from(&after, false),
            _ => v6.iter(),
        };
        let v4 = v4.into_iter().flatten().map(|(net, id)| (IpNet::V4(net), Found::Static(*id)));
        let v6 = v6.map(|(net, id)| (IpNet::V6(net), Found::Static(*id)));
        // One more than asked for tells whether there are more.
        found.extend(v4.chain(v6).take(most + 1));
    }
    // Stable: of one prefix the system's come first.
    found.sort_by_key(|(net, _)| *net);
    let Some((last, _)) = found.get(most - 1).copied() else { return (found, false) };
    // A page that ended within a prefix could not say where to go on.
    let end = found.partition_point(|(net, _)| *net <= last);
    let more = end < found.len();
    found.truncate(end);
    (found, more)
}

impl Gateway {
    pub(super) fn show_routes(&self, query: &RoutesQuery) -> Result<RoutePage, Fault> {
        let mut page = RoutePage { generation: self.node().tables.load().generation, ..RoutePage::default() };
        let mut vrfs = self.config().vrf_names();
        let no_vrf = |name: &VrfName| Fault::not_found(format!("no VRF `{name}`"));
        if let Some(wanted) = &query.vrf {
            vrfs.retain(|name| name == wanted);
            if vrfs.is_empty() {
                return Err(no_vrf(wanted));
            }
        }
        let first = match &query.after {
            Some(after) => {
                vrfs.iter().position(|name| *name == after.vrf).ok_or_else(|| no_vrf(&after.vrf))?
            }
            None => 0,
        };
        for (index, name) in vrfs.iter().enumerate() {
            let Some(slot) = self.compiler.vrfs.get(name.as_str()) else { continue };
            let system = self.system_routes(slot);
            let configured = self.compiler.rib().routes(slot);
            let one = self.asked_for(query, slot, &system, configured);
            let total = match &one {
                Some(found) => found.len(),
                None => system.len() + configured.map_or(0, |routes| routes.v4.len() + routes.v6.len()),
            };
            page.total += total as u64;
            if index < first || page.next.is_some() {
                continue;
            }
            let after =
                query.after.as_ref().filter(|after| after.vrf == *name).map(|after| after.prefix.net());
            let (found, more) = match (one, query.page().saturating_sub(page.routes.len())) {
                (_, 0) => (Vec::new(), total > 0),
                (Some(mut found), _) => {
                    found.retain(|(net, _)| after.is_none_or(|after| *net > after));
                    (found, false)
                }
                (None, room) => routes_behind(after, room, &system, configured),
            };
            for (net, found) in found {
                let Ok(prefix) = Prefix::new(net) else { continue };
                page.routes.push(self.route_entry(name, slot, prefix, found));
            }
            if more {
                let key = |last: &RouteEntry| RouteKey { prefix: last.prefix, vrf: last.vrf.clone() };
                page.next = page.routes.last().map(key);
            }
        }
        Ok(page)
    }

    /// The routes of a VRF that a query for a prefix or an address asks for.
    fn asked_for(
        &self,
        query: &RoutesQuery,
        vrf: u16,
        system: &[(IpNet, Found)],
        configured: Option<&VrfRoutes>,
    ) -> Option<Vec<(IpNet, Found)>> {
        if let Some(addr) = query.lookup {
            let of_configured: Vec<(IpNet, Found)> = match (configured, IpNet::from(addr)) {
                (None, _) => Vec::new(),
                (Some(routes), IpNet::V4(host)) => {
                    routes.v4.cover(&host).map(|(net, id)| (net.into(), Found::Static(*id))).collect()
                }
                (Some(routes), IpNet::V6(host)) => {
                    routes.v6.cover(&host).map(|(net, id)| (net.into(), Found::Static(*id))).collect()
                }
            };
            let of_system = system.iter().filter(|(net, _)| net.contains(&addr)).copied();
            // Of those that hold the address the longest one that is active.
            let best = of_configured.into_iter().chain(of_system.rev()).max_by_key(|(net, found)| {
                (self.is_active(vrf, found), net.prefix_len(), !matches!(found, Found::Static(_)))
            });
            let is_wanted = |net: &IpNet| query.prefix.is_none_or(|prefix| prefix.net() == *net);
            return Some(best.into_iter().filter(|(net, _)| is_wanted(net)).collect());
        }
        let prefix = query.prefix?.net();
        let of_configured = configured.and_then(|routes| match prefix {
            IpNet::V4(net) => routes.v4.get(&net),
            IpNet::V6(net) => routes.v6.get(&net),
        });
        let of_system = system.iter().filter(|(net, _)| *net == prefix).copied();
        Some(of_system.chain(of_configured.map(|id| (prefix, Found::Static(*id)))).collect())
    }

    fn system_routes(&self, vrf: u16) -> Vec<(IpNet, Found)> {
        let tables = self.node().tables.load();
        let mut routes = Vec::new();
        for (slot, interface) in tables.interfaces.iter().enumerate().filter(|(_, i)| i.vrf == vrf) {
            let slot = slot as u16;
            let v4 = interface.info.v4.iter().map(|(addr, len)| (IpAddr::V4(*addr), *len));
            let v6 = interface.info.v6.iter().map(|(addr, len)| (IpAddr::V6(*addr), *len));
            for (addr, len) in v4.chain(v6) {
                let Ok(net) = IpNet::new(addr, len) else { continue };
                if net.prefix_len() < net.max_prefix_len() {
                    routes.push((net.trunc(), Found::Connected(slot)));
                }
                routes.push((IpNet::from(addr), Found::Local(slot)));
            }
        }
        routes.sort_by_key(|(net, _)| *net);
        routes
    }

    fn is_active(&self, vrf: u16, found: &Found) -> bool {
        let tables = self.node().tables.load();
        match found {
            Found::Connected(slot) | Found::Local(slot) => tables.interface(*slot).up,
            Found::Static(id) => match self.compiler.rib().target(*id) {
                Target::Via(hops) => hops.iter().any(|hop| self.egress(hop).is_some_and(|(_, up)| up)),
                Target::Vrf(other) => *other != vrf,
                Target::Blackhole | Target::Unreachable => true,
            },
        }
    }

    /// The interface a next hop is reached by, and whether it is up and BFD has nothing against the next hop.
    fn egress(&self, hop: &Hop) -> Option<(u16, bool)> {
        let tables = self.node().tables.load();
        let slot = on_link(&tables.interfaces, hop)?;
        Some((slot, self.compiler.is_usable(&tables.interfaces, hop)))
    }

    pub(super) fn interface_name(&self, slot: u16) -> Option<InterfaceName> {
        let tables = self.node().tables.load();
        let wanted = &tables.interface(slot).info.name;
        self.config()
            .interfaces
            .iter()
            .find(|interface| interface.name.as_str() == wanted)
            .map(|i| i.name.clone())
    }

    fn route_entry(
        &self,
        vrf: &crate::config::VrfName,
        slot: u16,
        prefix: Prefix,
        found: Found,
    ) -> RouteEntry {
        let active = self.is_active(slot, &found);
        let mut entry = RouteEntry {
            vrf: vrf.clone(),
            prefix,
            kind: RouteKind::Via,
            via: Vec::new(),
            interface: None,
            source: RouteSource::Static,
            active,
            why: (!active).then(|| String::from("its interface is down")),
        };
        match found {
            Found::Connected(interface) => {
                (entry.kind, entry.source) = (RouteKind::Connected, RouteSource::Connected);
                entry.interface = self.interface_name(interface);
            }
            Found::Local(interface) => {
                (entry.kind, entry.source) = (RouteKind::Local, RouteSource::Local);
                entry.interface = self.interface_name(interface);
            }
            Found::Static(id) => match self.compiler.rib().target(id) {
                Target::Blackhole => entry.kind = RouteKind::Blackhole,
                Target::Unreachable => entry.kind = RouteKind::Unreachable,
                Target::Vrf(_) => {}
                Target::Via(hops) => {
                    entry.via = hops
                        .iter()
                        .map(|hop| {
                            let egress = self.egress(hop);
                            ViaEntry {
                                address: hop.address,
                                vrf: (hop.vrf != slot)
                                    .then(|| crate::config::Name::new(self.compiler.vrfs.name(hop.vrf)).ok())
                                    .flatten(),
                                interface: egress.and_then(|(interface, _)| self.interface_name(interface)),
                                active: egress.is_some_and(|(_, up)| up),
                            }
                        })
                        .collect();
                    if !active {
                        entry.why = Some(String::from(
                            "none of its next hops is reachable: interface or BFD session down",
                        ));
                    }
                }
            },
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Prefixes as close together as prefixes can be, of both families.
    fn prefix() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0u8..=6, 0u8..8).prop_map(|(is_v4, len, bits)| {
            let net = if is_v4 {
                IpNet::new(IpAddr::from([bits << 2, 0, 0, 0]), len)
            } else {
                IpNet::new(std::net::Ipv6Addr::from(u128::from(bits) << 122).into(), len)
            };
            net.expect("a length of at most 32").trunc()
        })
    }

    proptest! {
        /// The twin: all of them, sorted.
        #[test]
        fn pages_together_are_all_routes_in_order(
            configured in proptest::collection::btree_map(prefix(), any::<u32>(), 0..40),
            mut system in proptest::collection::vec(prefix(), 0..12),
            most in 1usize..8,
        ) {
            let mut routes = VrfRoutes::default();
            for (net, id) in &configured {
                match net {
                    IpNet::V4(net) => routes.v4.insert(*net, *id),
                    IpNet::V6(net) => routes.v6.insert(*net, *id),
                };
            }
            system.sort();
            let system: Vec<(IpNet, Found)> =
                system.into_iter().zip(0..).map(|(net, slot)| (net, Found::Local(slot))).collect();
            let mut all = system.clone();
            all.extend(configured.iter().map(|(net, id)| (*net, Found::Static(*id))));
            all.sort_by_key(|(net, _)| *net);

            let (mut pages, mut after) = (Vec::new(), None);
            loop {
                let (page, more) = routes_behind(after, most, &system, Some(&routes));
                prop_assert!(!more || page.len() >= most);
                if let Some((last, _)) = page.last() {
                    // More than asked for only of one prefix.
                    prop_assert!(page.iter().skip(most).all(|(net, _)| net == last));
                    prop_assert!(after < Some(*last));
                    after = Some(*last);
                }
                pages.extend(page);
                if !more {
                    break;
                }
            }
            prop_assert_eq!(pages, all);
        }
    }
}
