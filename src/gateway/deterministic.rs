//! Deterministic NAT (RFC 7422) in the words of the config: whose a port is, and how a pool is shared.

use std::net::Ipv4Addr;

use crate::config::{AddressRange, VrfName};
use crate::control::{Fault, HostQuery, NatHost, PortQuery, SharedPool};
use crate::flow::nat::{InsideRange, Pool};
use crate::tables::compile::Compiler;
use crate::tables::policy::{HostPorts, Nobody, Policy};

fn vrf_slot(compiler: &Compiler, vrf: Option<&VrfName>) -> Result<Option<u16>, Fault> {
    let known = |vrf: &VrfName| compiler.vrfs.get(vrf.as_str());
    vrf.map(|vrf| known(vrf).ok_or_else(|| Fault::not_found(format!("no VRF {vrf}")))).transpose()
}

/// Names of the source NAT rules that use a pool.
pub fn rules_of(policy: &Policy, compiler: &Compiler, pool: u16) -> Vec<String> {
    let names = compiler.policy_slots.nat_rules.names();
    let users = policy.pool_users().into_iter().filter(|(of, _)| *of == pool);
    let mut rules: Vec<String> = users
        .map(|(_, rule)| names.get(usize::from(rule)).map_or("?", String::as_str))
        .map(|name| name.trim_start_matches("source/").to_owned())
        .collect();
    rules.dedup();
    rules
}

fn named(place: HostPorts, policy: &Policy, compiler: &Compiler) -> NatHost {
    NatHost {
        rules: rules_of(policy, compiler, place.pool),
        inside: place.inside,
        inside_vrf: compiler.vrfs.name(place.inside_vrf).to_owned(),
        outside: place.outside,
        outside_vrf: compiler.vrfs.name(place.outside_vrf).to_owned(),
        first_port: *place.ports.start(),
        last_port: *place.ports.end(),
    }
}

/// RFC 7422 section 2, function 1.
pub fn map(policy: &Policy, compiler: &Compiler, query: &HostQuery) -> Result<Vec<NatHost>, Fault> {
    let places = policy.outside_of(vrf_slot(compiler, query.vrf.as_ref())?, query.inside);
    if places.is_empty() {
        return Err(Fault::not_found(format!("{} is no host of a deterministic NAT", query.inside)));
    }
    Ok(places.into_iter().map(|place| named(place, policy, compiler)).collect())
}

/// RFC 7422 section 2, function 2.
pub fn find(policy: &Policy, compiler: &Compiler, query: &PortQuery) -> Result<Vec<NatHost>, Fault> {
    let PortQuery { outside, port, vrf } = query;
    let places = policy.inside_of(vrf_slot(compiler, vrf.as_ref())?, *outside, *port).map_err(|nobody| {
        let why = match nobody {
            Nobody::NotDeterministic => "no deterministic NAT has this address",
            Nobody::NotShared => "the port is no host's: reserved, or left over",
            Nobody::Overflow => {
                "of the overflow: the event log says whose it was at which time (block-claimed)"
            }
            Nobody::NoSuchHost => "there are fewer hosts: nobody has it",
        };
        Fault::not_found(format!("{outside}:{port}: {why}"))
    })?;
    Ok(places.into_iter().map(|place| named(place, policy, compiler)).collect())
}

/// How a pool is shared, if its NAT is deterministic.
pub fn shared(pool: &Pool, compiler: &Compiler) -> Option<SharedPool> {
    let shared = pool.shared()?;
    let range = |InsideRange { first, count }: &InsideRange| {
        let [first, last] =
            [*first, *first + u128::from(count - 1)].map(|addr| Ipv4Addr::from(addr as u32).into());
        AddressRange::new(first, last).map_or_else(|_| String::new(), |range| range.to_string())
    };
    Some(SharedPool {
        inside: shared.ranges.iter().map(range).collect(),
        inside_vrf: compiler.vrfs.name(shared.vrf).to_owned(),
        hosts: shared.ranges.iter().map(|range| u64::from(range.count)).sum(),
        hosts_per_address: shared.share.hosts_per_address,
        ports_per_host: shared.share.ports_per_host,
        first_port: shared.share.first_port,
        overflow: shared.overflow,
    })
}

/// Logs the parameters of the pools that `before` did not have: with them and the time of the line a port's host can
/// be told long after (RFC 7422 section 2: they are what is logged instead of blocks).
pub fn log_changes(before: &Policy, compiler: &Compiler) {
    let policy = &compiler.tables().policy;
    for (pool, index) in policy.pools.iter().zip(0..) {
        let Some(shared) = shared(pool, compiler) else { continue };
        let is_as = |old: &Pool| old.ranges().eq(pool.ranges()) && old.vrf() == pool.vrf();
        if before.pools.iter().any(|old| is_as(old) && old.shared() == pool.shared()) {
            continue;
        }
        let addresses: Vec<String> = pool
            .ranges()
            .filter_map(|range| AddressRange::new(range.first.into(), range.last.into()).ok())
            .map(|range| range.to_string())
            .collect();
        tracing::info!(
            target: "softgate::audit",
            rules = rules_of(policy, compiler, index).join(","),
            inside = shared.inside.join(","),
            inside_vrf = shared.inside_vrf,
            outside = addresses.join(","),
            outside_vrf = compiler.vrfs.name(pool.vrf()),
            hosts_per_address = shared.hosts_per_address,
            ports_per_host = shared.ports_per_host,
            first_port = shared.first_port,
            overflow = shared.overflow,
            "deterministic NAT"
        );
    }
}
