//! The virtual routers of a live gateway: what they are to be, from config, links and what is tracked, and what they are.
//! A thread runs them beside the workers, with packet sockets of its own, so that no flood of data keeps it from
//! speaking and hearing.

mod bfd;
mod filter;
mod paths;
mod runner;
mod sockets;
mod track;
mod tunnels;

use std::net::IpAddr;
use std::time::Duration;

use ahash::AHashMap;

use super::{Gateway, LivePort, Member};
use crate::config::{Mac, Vrrp, virtual_mac};
use crate::control::{AdvertErrors, DrainEntry, HaList, VirtualRouterEntry};
use crate::ha::vrrp::{Also, BadAdvert, Plan, RouterPlan, Settings, Status};
use crate::io::xdp::{BridgedLink, OwnRouters, TunnelledSegment};
use crate::neighbours::mac_from_u64;
use crate::packet::Tags;
use crate::tables::overlay::{NO_OVERLAY, Overlay};
use crate::tables::router_group::NO_GROUP;
use crate::tables::{Interface, Tables};
pub(super) use runner::Ha;
pub use runner::HaStatus;
use runner::NodePlan;
use sockets::PlannedDevice;
use tunnels::PlannedEnd;

/// Addresses of NAT announced with virtual routers at most: their MAC addresses stay, so that neighbours need none of it.
const MAX_ALSO: usize = 1024;

impl Gateway {
    /// Has the virtual routers follow the config, the links and what is tracked.
    pub(super) fn follow_virtual_routers(&mut self) {
        let has_any = !self.config.vrrp.is_empty() || !self.config.bfd.is_empty();
        if !has_any && self.ha.plan == NodePlan::default() {
            return;
        }
        let plan = self.plan_virtual_routers();
        if let Err(error) = self.ha.follow(plan) {
            tracing::error!(%error, "the virtual routers do not run");
        }
    }

    fn plan_virtual_routers(&self) -> NodePlan {
        let tables = self.compiler.tables();
        let mut routers = Vec::new();
        let mut links = Vec::new();
        let mut also = also(tables);
        for vrrp in &self.config.vrrp {
            let Some(link) = self.compiler.interfaces.get(vrrp.interface.as_str()) else { continue };
            let Some(interface) = tables.interfaces.get(usize::from(link)) else { continue };
            links.push(link);
            let (name, group) = (name_of(vrrp), group_of(vrrp));
            let configured = vrrp.priority.get() as u8;
            for router in
                interface.info.routers.iter().filter(|router| u32::from(router.vrid) == vrrp.id.get())
            {
                let Some(primary) = primary_of(interface, &router.addresses) else { continue };
                let also = also.remove(&router.role).unwrap_or_default();
                links.extend(also.iter().map(|also| also.link));
                routers.push(RouterPlan {
                    name: name.clone(),
                    role: router.role,
                    link,
                    vrid: router.vrid,
                    group: group.clone(),
                    priority: configured,
                    settings: Settings {
                        priority: configured,
                        interval: vrrp.interval,
                        preempt: vrrp.preempt,
                        preempt_delay: vrrp.preempt_delay.map_or(Duration::ZERO, |delay| delay.duration()),
                        primary,
                    },
                    pseudo_header: vrrp.pseudo_header,
                    addresses: router.addresses.clone(),
                    also: also.into(),
                    up: interface.up,
                });
            }
        }
        links.sort_unstable();
        links.dedup();
        let has_tunnels = |link: &u16| !overlays_of(tables, *link).is_empty();
        let is_heard = |router: &RouterPlan| has_tunnels(&router.link);
        NodePlan {
            tunnels: links.iter().copied().filter(has_tunnels).collect(),
            ends: if routers.iter().any(is_heard) { self.ends() } else { Vec::new() },
            devices: self.devices_of(links),
            plan: Plan { routers },
            paths: self.plan_paths(),
            trackers: self.trackers(),
        }
    }

    /// All devices: tunnels may come by any of them.
    fn ends(&self) -> Vec<PlannedEnd> {
        let end = |port: u16, device: &Member| {
            Some(PlannedEnd { name: device.device.clone(), ifindex: device.link?.ifindex, port })
        };
        let of = |port: &LivePort| {
            let slot = port.slot;
            port.members.iter().filter_map(move |device| end(slot, device)).collect::<Vec<_>>()
        };
        self.ports.iter().flat_map(of).collect()
    }

    /// The devices of links, once for each of them: of a bridge's interface those of all its members.
    fn devices_of(&self, mut links: Vec<u16>) -> Vec<PlannedDevice> {
        links.sort_unstable();
        links.dedup();
        let tables = self.compiler.tables();
        let devices = links.into_iter().flat_map(|link| {
            let interface = &tables.interfaces[usize::from(link)];
            let bridge = tables.bridges.get(interface.bridge).filter(|_| interface.is_segment());
            let members = bridge.into_iter().flat_map(|bridge| &bridge.members);
            let itself = bridge.is_none().then_some(link);
            itself.into_iter().chain(members.map(|member| member.interface)).flat_map(move |member| {
                let interface = tables.interface(member);
                let port = self.ports.iter().find(|port| port.slot == interface.port);
                port.into_iter().flat_map(move |port| devices(port, (link, member), interface))
            })
        });
        devices.collect()
    }
}

impl Gateway {
    /// Members of bridges by device and tags, with the virtual routers of this node on the bridge.
    pub(super) fn bridged_links(&self) -> AHashMap<BridgedLink, OwnRouters> {
        let tables = self.compiler.tables();
        let mut all = AHashMap::new();
        for bridge in tables.bridges.iter() {
            let mut routers = OwnRouters::default();
            if let Some(interface) = tables.interfaces.get(usize::from(bridge.interface)) {
                interface.info.routers.iter().for_each(|router| routers.insert(router.vrid, router.is_ipv6));
            }
            for member in &bridge.members {
                let interface = tables.interface(member.interface);
                let Tags { outer, inner } = interface.info.tags;
                let port = self.ports.iter().find(|port| port.slot == interface.port);
                let devices = port.into_iter().flat_map(|port| &port.members);
                let links = devices.filter_map(|device| device.link);
                all.extend(links.map(|link| (BridgedLink { ifindex: link.ifindex, outer, inner }, routers)));
            }
        }
        all
    }

    /// Segments in tunnels, with the virtual routers of this node there.
    pub(super) fn tunnelled_segments(&self) -> AHashMap<TunnelledSegment, OwnRouters> {
        let tables = self.compiler.tables();
        let mut all = AHashMap::new();
        for (link, interface) in tables.interfaces.iter().enumerate() {
            if interface.info.routers.is_empty() {
                continue;
            }
            let mut routers = OwnRouters::default();
            interface.info.routers.iter().for_each(|router| routers.insert(router.vrid, router.is_ipv6));
            for overlay in overlays_of(tables, link as u16) {
                let spec = &overlay.spec;
                all.insert(TunnelledSegment::new(spec.vtep, spec.udp_port, spec.vni), routers);
            }
        }
        all
    }

    pub(super) fn show_ha(&self) -> HaList {
        let status = self.ha.status();
        let trackers = &self.ha.plan.trackers;
        let entry = |router: &Status| {
            let Status { plan, state, active, active_down, since, counters } = router;
            let vrrp = self.config.vrrp.iter().find(|vrrp| name_of(vrrp) == plan.name)?;
            let is_behind = status.behind.contains(&plan.group);
            Some(VirtualRouterEntry {
                interface: vrrp.interface.clone(),
                id: plan.vrid,
                group: vrrp.group.clone(),
                addresses: plan.addresses.clone(),
                mac: Mac::new(virtual_mac(plan.vrid, plan.settings.primary.is_ipv6())).ok(),
                state: *state,
                since_s: status.now.since(*since).as_secs(),
                priority: plan.settings.priority,
                configured_priority: plan.priority,
                tracked: trackers
                    .iter()
                    .find(|(group, _)| *group == plan.group)
                    .map(|(_, trackers)| track::entries(trackers, &status.paths, is_behind))
                    .unwrap_or_default(),
                interval_cs: plan.settings.interval.get(),
                active_down_ms: active_down.as_millis() as u64,
                source: plan.settings.primary,
                active: *active,
                became_active: counters.became_active,
                sent: counters.sent,
                leaving_sent: counters.leaving_sent,
                received: counters.received,
                leaving_received: counters.leaving_received,
                errors: errors(&counters.errors),
            })
        };
        HaList {
            routers: status.routers.iter().filter_map(entry).collect(),
            strays: errors(&status.strays),
            not_sent: status.not_sent + status.paths.not_sent,
            bfd: self.show_bfd(&status),
            pair: self.show_pair().map(Box::new),
            kept: self.keeping.show(&self.node),
            upgrade: self.upgrade.show(),
            drain: Some(self.show_drain()).filter(DrainEntry::is_worth_showing),
        }
    }
}

/// What a virtual router is called.
fn name_of(vrrp: &Vrrp) -> String {
    format!("{}/{}", vrrp.interface, vrrp.id)
}

/// With whom it moves; who names no group is one by himself, of a name that no config can give.
fn group_of(vrrp: &Vrrp) -> String {
    vrrp.group.as_ref().map_or_else(|| format!("{} ", name_of(vrrp)), ToString::to_string)
}

fn errors(counted: &[u64; BadAdvert::ALL.len()]) -> Vec<AdvertErrors> {
    errors_of(&BadAdvert::ALL.map(BadAdvert::name), counted)
}

/// Those that have counted.
fn errors_of(names: &[&str], counted: &[u64]) -> Vec<AdvertErrors> {
    let all = names.iter().zip(counted).filter(|(_, count)| **count > 0);
    all.map(|(name, count)| AdvertErrors { kind: (*name).to_owned(), count: *count }).collect()
}

/// The overlays by which a link has tunnels: its own, or those of the members of its bridge.
fn overlays_of(tables: &Tables, link: u16) -> Vec<&Overlay> {
    let interface = tables.interface(link);
    let bridge = tables.bridges.get(interface.bridge).filter(|_| interface.is_segment());
    let members = bridge.into_iter().flat_map(|bridge| &bridge.members).filter_map(|member| member.vni);
    let own = if bridge.is_none() { interface.overlay } else { NO_OVERLAY };
    let numbers = members.map(|(_, overlay)| overlay).chain([own]);
    numbers.filter_map(|number| tables.overlays.get(number)).collect()
}

/// Those of a port that are there, for one of its links: an interface, or a member of the bridge that it is on.
fn devices<'a>(
    port: &'a LivePort,
    (link, member): (u16, u16),
    interface: &'a Interface,
) -> impl Iterator<Item = PlannedDevice> + 'a {
    let sender = port.members_up().trailing_zeros() as usize;
    port.members.iter().enumerate().filter_map(move |(at, device)| {
        Some(PlannedDevice {
            name: device.device.clone(),
            ifindex: device.link?.ifindex,
            link,
            member,
            port: port.slot,
            tags: interface.info.tags,
            tag_bytes: interface.header[12..usize::from(interface.header_len) - 2].to_vec(),
            sends: at == sender,
        })
    })
}

/// The address that advertisements come from: with IPv4 that in the network of the first virtual one, with IPv6 the
/// link-local one (RFC 9568 section 7.2).
fn primary_of(interface: &Interface, addresses: &[IpAddr]) -> Option<IpAddr> {
    match addresses.first()? {
        IpAddr::V4(first) => interface.source_v4(*first).map(Into::into),
        IpAddr::V6(_) => interface.info.link_local.map(Into::into),
    }
}

/// Addresses on links that are no virtual router's, by the place of the one that announces them with its own: of NAT and
/// services the first of their group and family there, or where the group has none the one that stands for it, from the
/// interface's own MAC address; and with the bridges of a group the addresses that this node has on them.
fn also(tables: &Tables) -> AHashMap<u16, Vec<Also>> {
    let mut all: AHashMap<u16, Vec<Also>> = AHashMap::new();
    let mut add = |role: u16, link: u16, (mac, address): (u64, IpAddr)| {
        let mac = mac_from_u64(mac);
        all.entry(role).or_default().push(Also { link, mac, address });
    };
    for (vrf, address, group) in tables.policy.publics().addresses(MAX_ALSO) {
        let Some(link) = tables.vrfs.get(usize::from(vrf)).and_then(|vrf| vrf.connected(address)) else {
            continue;
        };
        let interface = tables.interface(link);
        if interface.router_of(address).is_none() {
            let mut routers = interface.info.routers.iter();
            let speaker = routers.find(|router| (router.group, router.is_ipv6) == (group, address.is_ipv6()));
            let mac = interface.mac_of_group(group, address.is_ipv6());
            add(speaker.map_or(group, |router| router.role), link, (mac, address));
        }
    }
    for bridge in tables.bridges.iter().filter(|bridge| bridge.group != NO_GROUP) {
        let Some(interface) = tables.interfaces.get(usize::from(bridge.interface)) else { continue };
        let v4 = interface.info.v4.iter().map(|(own, _)| IpAddr::from(*own));
        let v6 =
            interface.info.v6.iter().map(|(own, _)| *own).chain(interface.info.link_local).map(IpAddr::from);
        v4.chain(v6).for_each(|own| add(bridge.group, bridge.interface, (interface.mac, own)));
    }
    all
}
