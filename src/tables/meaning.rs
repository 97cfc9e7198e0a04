//! From what was typed ([`Config`]) to what it means for the tables ([`Input`] and [`Rib`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use crate::config::{self, Config, RouteTarget, RouterAdvertisements, Vlan};
use crate::neighbours::mac_to_u64;
use crate::packet::Tags;
use crate::packet::hash::Key;
use crate::ratelimit::Rate;
use crate::tables::bridge::Snooping;
use crate::tables::compile::{
    BridgeSpec, CompileError, Compiler, Input, InterfaceSpec, NeighbourSpec, PortSpec,
};
use crate::tables::overlay::OverlaySpec;
use crate::tables::pair_link::PairLinkSpec;
use crate::tables::policy::{self, NO_ZONE, Policy};
use crate::tables::relay::RelaySpec;
use crate::tables::rib::{Hop, Rib, Target};
use crate::tables::router_group::NO_GROUP;
use crate::tables::virtual_router::VirtualRouter;
use crate::tables::{Advertisements, Lag, Settings, SourceCheck};

/// What is known of a port's devices when tables are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// The MAC address of interfaces that name none.
    pub mac: [u8; 6],
    /// Members that may send, one bit each.
    pub members_up: u8,
}

impl PortFacts {
    /// The facts of replay and bench: up, with a MAC address that depends on the port's position only.
    pub fn stable(index: usize) -> PortFacts {
        PortFacts { mac: [0x02, 0x53, 0x47, 0, (index >> 8) as u8, index as u8], members_up: 1 }
    }
}

/// Everything but the routes. `facts` are in the order of the config's ports.
pub fn input(config: &Config, facts: &[PortFacts], compiler: &mut Compiler) -> Result<Input, CompileError> {
    input_with(config, facts, None, compiler)
}

/// The same where the policy has been compiled from this config already: no port, link or route matters to it.
pub fn input_with(
    config: &Config,
    facts: &[PortFacts],
    policy: Option<Arc<Policy>>,
    compiler: &mut Compiler,
) -> Result<Input, CompileError> {
    let ends = config.ends();
    let mut zones = Vec::with_capacity(ends.len());
    for config::End { interface, .. } in &ends {
        let zone = |zone: &config::ZoneName| compiler.policy_slots.zone(zone.as_str());
        zones.push(interface.zone.as_ref().map_or(Ok(NO_ZONE), zone)?);
    }
    let mut routers = Vec::with_capacity(ends.len());
    for config::End { interface, .. } in &ends {
        routers.push(virtual_routers(config, interface, compiler)?);
    }
    let policy = match policy {
        Some(policy) => policy,
        None => Arc::new(policy::policy(config, compiler)?),
    };
    let ports = config.ports.iter().zip(facts).map(|(port, facts)| PortSpec {
        name: port.name.to_string(),
        lag: match port.lag {
            None => Lag::None,
            Some(config::Lag::ActiveBackup) => Lag::ActiveBackup,
            Some(config::Lag::Static) => Lag::Static,
        },
        members_up: facts.members_up,
    });
    let own_mac = |port: Option<&config::PortName>| {
        let port = config.ports.iter().position(|known| Some(&known.name) == port);
        port.and_then(|port| facts.get(port)).map_or([0; 6], |facts| facts.mac)
    };
    let mac = |interface: &config::Interface| {
        let port = match &interface.bridge {
            Some(bridge) => config.port_of_bridge(bridge),
            None => interface.port_around(&config.interfaces),
        };
        interface.mac.map_or_else(|| own_mac(port), config::Mac::bytes)
    };
    let mut bridges = Vec::with_capacity(config.bridges.len());
    for spec in &config.bridges {
        let group = match config.group_of_bridge(spec.group.as_ref()) {
            Some(leader) => group_slot(&config.vrrp[leader], compiler)?,
            None => NO_GROUP,
        };
        bridges.push(bridge(spec, group));
    }
    let interfaces = ends.iter().zip(zones).zip(routers).map(|((end, zone), routers)| {
        let interface = &end.interface;
        let member = end.member.map(|(bridge, at)| {
            let bridge = &config.bridges[bridge];
            (bridge, &bridge.members[at])
        });
        // What its members hear for the interface of a bridge is known by one address.
        let own = |bridge: &config::Bridge| {
            config.interfaces.iter().find(|interface| interface.bridge.as_ref() == Some(&bridge.name))
        };
        let is_heard_for = member.and_then(|(bridge, _)| own(bridge)).unwrap_or(interface);
        InterfaceSpec {
            name: interface.name.to_string(),
            port: interface.port.as_ref().map(ToString::to_string),
            overlay: overlay(interface),
            bridge: member
                .map(|(bridge, _)| &bridge.name)
                .or(interface.bridge.as_ref())
                .map(ToString::to_string),
            limits: member.map_or((0, 0), |(bridge, member)| {
                (
                    member.max_macs.unwrap_or(bridge.max_macs).get(),
                    member.storm_pps.unwrap_or(bridge.storm_pps).get(),
                )
            }),
            multicast_router: member.is_some_and(|(_, member)| member.multicast_router),
            tags: match interface.vlan {
                None => Tags::default(),
                Some(Vlan::Single(vlan)) => Tags { outer: vlan.get(), inner: 0 },
                Some(Vlan::QinQ { outer, inner }) => Tags { outer: outer.get(), inner: inner.get() },
            },
            outer_tpid: interface.tpid.unwrap_or_default().ethertype(),
            vrf: interface.vrf.to_string(),
            addresses: interface.addresses.iter().map(|a| (a.address(), a.net().prefix_len())).collect(),
            mtu_bytes: interface.mtu(&config.interfaces).bytes(),
            mac: mac(is_heard_for),
            source_check: match interface.source_check {
                config::SourceCheck::Off => SourceCheck::Off,
                config::SourceCheck::Loose => SourceCheck::Loose,
                config::SourceCheck::Strict => SourceCheck::Strict,
            },
            clamp_mss: interface.clamp_mss,
            zone,
            advertisements: match interface.router_advertisements {
                RouterAdvertisements::Off => None,
                RouterAdvertisements::On { interval_s, lifetime_s } => {
                    Some(Advertisements { interval_s, lifetime_s })
                }
            },
            relays: relay_v4(interface).into_iter().chain(relay_v6(interface)).collect(),
            routers,
        }
    });
    Ok(Input {
        settings: settings(config),
        ports: ports.collect(),
        interfaces: interfaces.collect(),
        bridges,
        vrfs: config.vrf_names().iter().map(ToString::to_string).collect(),
        neighbours: neighbours(config, &config.neighbours),
        policy,
        pair_link: pair_link(config),
    })
}

/// The way to the other node, if the config has one.
fn pair_link(config: &Config) -> Option<PairLinkSpec> {
    let link = config.pair.as_ref()?.link.as_ref()?;
    let interface = link.interface_in(config)?;
    Some(PairLinkSpec {
        interface: interface.name.to_string(),
        local: link.local,
        peer: link.peer,
        udp_port: link.udp_port.get() as u16,
        outside: outside_of_shared(config).map(|interface| interface.name.to_string()).collect(),
    })
}

/// The interfaces by which sessions leave that get ports of a shared pool, as far as its rules name them.
fn outside_of_shared(config: &Config) -> impl Iterator<Item = &config::Interface> {
    let rules = || config.nat.sources.iter().filter(|rule| rule.shared);
    config.interfaces.iter().filter(move |interface| {
        rules().any(|rule| {
            let is_named = rule.to.zone.is_some() || rule.to.interface.is_some();
            is_named
                && interface.vrf == rule.vrf
                && rule.to.zone.as_ref().is_none_or(|zone| interface.zone.as_ref() == Some(zone))
                && rule.to.interface.as_ref().is_none_or(|name| interface.name == *name)
        })
    })
}

/// These neighbours on the interfaces of a config.
pub fn neighbours(config: &Config, neighbours: &[config::Neighbour]) -> Vec<NeighbourSpec> {
    let overlays: AHashMap<_, _> = config
        .interfaces
        .iter()
        .filter(|interface| interface.vni.is_some())
        .map(|interface| (&interface.name, interface))
        .collect();
    let spec = |neighbour: &config::Neighbour| NeighbourSpec {
        interface: neighbour.interface.to_string(),
        address: neighbour.address,
        mac: neighbour.mac.bytes(),
        // The only one, if none is named.
        remote: overlays
            .get(&neighbour.interface)
            .and_then(|interface| neighbour.remote.or_else(|| interface.remotes.first().copied())),
    };
    neighbours.iter().map(spec).collect()
}

/// The virtual routers of an interface, with places in the table of roles from `compiler`.
fn virtual_routers(
    config: &Config,
    interface: &config::Interface,
    compiler: &mut Compiler,
) -> Result<Vec<VirtualRouter>, CompileError> {
    let mut routers = Vec::new();
    let all = config.vrrp.iter().enumerate();
    for (at, vrrp) in all.filter(|(_, vrrp)| vrrp.interface == interface.name) {
        let group = group_slot(&config.vrrp[config.leader_of(at)], compiler)?;
        for is_ipv6 in [false, true] {
            let addresses = vrrp.addresses_of(is_ipv6);
            if !addresses.is_empty() {
                let role = compiler.role_slot(&role_name(vrrp, is_ipv6))?;
                let vrid = vrrp.id.get() as u8;
                let mac = mac_to_u64(config::virtual_mac(vrid, is_ipv6));
                let accept = vrrp.accept;
                routers.push(VirtualRouter { role, group, vrid, is_ipv6, mac, addresses, accept });
            }
        }
    }
    Ok(routers)
}

/// The place in the table of roles that stands for the group of its first virtual router.
pub(in crate::tables) fn group_slot(
    leader: &config::Vrrp,
    compiler: &mut Compiler,
) -> Result<u16, CompileError> {
    let is_ipv6 = !leader.addresses.iter().any(IpAddr::is_ipv4);
    compiler.role_slot(&role_name(leader, is_ipv6))
}

/// What the table of roles knows a virtual router of one family by.
pub fn role_name(vrrp: &config::Vrrp, is_ipv6: bool) -> String {
    format!("{}/{}/{}", vrrp.interface, vrrp.id, if is_ipv6 { "ipv6" } else { "ipv4" })
}

fn bridge(bridge: &config::Bridge, group: u16) -> BridgeSpec {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    BridgeSpec {
        name: bridge.name.to_string(),
        ageing_s: bridge.ageing_s.get().into(),
        storm_pps: bridge.storm_pps.get(),
        suppress: bridge.suppress,
        loop_probe: Some(seconds(bridge.loop_probe_s.get())).filter(|time| !time.is_zero()),
        loop_hold: seconds(bridge.loop_hold_s.get()),
        other_protocols: bridge.other_protocols,
        snooping: bridge.snooping.then(|| Snooping {
            flood_unknown: bridge.unknown_multicast == config::UnknownMulticast::Flood,
            fast_leave: bridge.fast_leave,
            querier: bridge.querier,
            // RFC 3376 section 8.2.
            interval_s: bridge.query_interval_s.map_or(125, |interval| interval.get() as u16),
            max_groups: bridge.max_groups.map_or(256, |most| most.get()),
        }),
        group,
    }
}

/// The segment that an interface with a VNI is an end of.
fn overlay(interface: &config::Interface) -> Option<OverlaySpec> {
    let (vni, vtep) = (interface.vni?, interface.vtep?);
    Some(OverlaySpec {
        vni: vni.get(),
        vtep,
        remotes: interface.remotes.clone(),
        accept_from: interface.accept_from.iter().map(|prefix| prefix.net()).collect(),
        underlay_vrf: interface.underlay().to_string(),
        encapsulation: interface.encapsulation.unwrap_or_default(),
        udp_port: interface.tunnel_port(),
        dscp: match interface.dscp.unwrap_or_default() {
            config::OuterDscp::Copy => None,
            config::OuterDscp::Fixed(dscp) => Some(dscp.get() as u8),
        },
        ttl: interface.ttl.map_or(OverlaySpec::DEFAULT_TTL, |ttl| ttl.get() as u8),
        learning: interface.learning.unwrap_or(true),
        udp_checksum: interface.udp_checksum.unwrap_or(false),
    })
}

/// What relays DHCP messages of the interface's clients.
fn relay_v4(interface: &config::Interface) -> Option<RelaySpec> {
    let relay = interface.dhcp_relay.as_ref()?;
    let vrf = relay.vrf.as_ref().unwrap_or(&interface.vrf);
    let source = interface.relay_source(true, relay.source.map(IpAddr::V4))?;
    Some(RelaySpec {
        vrf: vrf.to_string(),
        source,
        link: interface.relay_source(true, None)?,
        is_own_source: is_own_source(interface, vrf, source),
        servers: relay.servers.iter().map(|server| IpAddr::V4(*server)).collect(),
        id: relay.circuit_id.as_ref().map_or(interface.name.as_str().as_bytes(), |id| id.bytes()).to_vec(),
        remote_id: relay.remote_id.as_ref().map(|id| id.bytes().to_vec()),
        option82: relay.option82,
        server_id_override: relay.server_id_override,
        from_relays: relay.from_relays,
        max_hops: relay.max_hops.get() as u8,
        limit: rate(relay.rate_limit),
    })
}

/// The same of DHCPv6.
fn relay_v6(interface: &config::Interface) -> Option<RelaySpec> {
    let relay = interface.dhcpv6_relay.as_ref()?;
    let vrf = relay.vrf.as_ref().unwrap_or(&interface.vrf);
    let source = interface.relay_source(false, relay.source.map(IpAddr::V6))?;
    Some(RelaySpec {
        vrf: vrf.to_string(),
        source,
        link: interface.relay_source(false, None)?,
        is_own_source: is_own_source(interface, vrf, source),
        servers: relay.servers.iter().map(|server| IpAddr::V6(*server)).collect(),
        id: relay.interface_id.as_ref().map_or(interface.name.as_str().as_bytes(), |id| id.bytes()).to_vec(),
        remote_id: relay.remote_id.as_ref().map(|id| id.bytes().to_vec()),
        option82: config::Option82::Off,
        server_id_override: false,
        from_relays: relay.from_relays,
        max_hops: relay.max_hops.get() as u8,
        limit: rate(relay.rate_limit),
    })
}

fn rate(limit: config::RateLimit) -> Rate {
    Rate { per_s: limit.per_s.get(), burst: limit.burst.unwrap_or(limit.per_s).get() }
}

fn is_own_source(interface: &config::Interface, vrf: &config::VrfName, source: IpAddr) -> bool {
    *vrf == interface.vrf && interface.addresses.iter().any(|own| own.address() == source)
}

/// The key of whatever nodes and runs must agree on.
pub fn key(config: &Config) -> Key {
    let (high, low) = config.system.key.0.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    Key(word(high), word(low))
}

fn settings(config: &Config) -> Settings {
    Settings {
        name: config.system.name.to_string(),
        key: key(config),
        icmp_rate: config.icmp.rate.get(),
        icmp_burst: config.icmp.burst.get(),
        icmp_source_rate: config.icmp.per_source_rate.get(),
        icmp_source_burst: config.icmp.per_source_burst.get(),
        neighbours_per_interface: config.neighbour_limits.per_interface.get(),
        neighbour_queue: config.neighbour_limits.queue.get() as usize,
        reachable: std::time::Duration::from_secs(u64::from(config.neighbour_limits.reachable_s.get())),
    }
}

/// The configured routes, with VRF slots from `compiler`.
pub fn rib(config: &Config, compiler: &mut Compiler) -> Result<Rib, CompileError> {
    let mut rib = Rib::default();
    for route in config.all_routes() {
        let vrf = compiler.vrf_slot(route.vrf.as_str())?;
        rib.insert(vrf, route.prefix.net(), target(&route.target, vrf, compiler)?);
    }
    Ok(rib)
}

/// What a route's target means in `vrf`.
pub fn target(target: &RouteTarget, vrf: u16, compiler: &mut Compiler) -> Result<Target, CompileError> {
    Ok(match target {
        RouteTarget::Blackhole => Target::Blackhole,
        RouteTarget::Unreachable => Target::Unreachable,
        RouteTarget::Via(hops) => {
            let mut via = Vec::with_capacity(hops.len());
            for hop in hops {
                let vrf = match &hop.vrf {
                    Some(name) => compiler.vrf_slot(name.as_str())?,
                    None => vrf,
                };
                let interface = match &hop.interface {
                    Some(name) => Some(compiler.interface_slot(name.as_str())?),
                    None => None,
                };
                via.push(Hop { address: hop.address, vrf, interface });
            }
            Target::Via(via)
        }
    })
}
