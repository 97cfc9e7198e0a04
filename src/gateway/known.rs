//! What a gateway has learned of what is around it, for the process that takes its place: neighbours, stations of bridges, and
//! which backends its checks hold for up. Things go by their names: the next process may have another config.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Gateway;
use super::bridges::name_of;
use crate::macs::{Entry, Location};
use crate::neighbours::{addr_key, addr_of, mac_from_u64, mac_to_u64};
use crate::tables::Tables;
use crate::tables::bridge::Bridge;

/// Learned neighbours of an interface: as many as it may learn.
const NEIGHBOURS: u32 = u32::MAX;
/// Neighbours, stations and backends of each that go over at most, some 100 bytes for one: a line has 64 MiB
/// ([`crate::io::passing`]). Beyond that they are learned anew.
const MOST: usize = 150_000;

/// All of it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Known {
    /// Interface, address, MAC.
    neighbours: Vec<(String, IpAddr, [u8; 6])>,
    stations: Vec<Station>,
    /// Backends with a verdict of their checks, and whether that is up.
    pub backends: Vec<(String, bool)>,
}

/// A station of a bridge.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Station {
    pub bridge: String,
    pub member: String,
    pub mac: [u8; 6],
    /// Tunnel end point it is behind.
    pub remote: Option<IpAddr>,
    /// A control plane has placed it.
    pub is_placed: bool,
}

impl Gateway {
    pub(super) fn known(&self) -> Known {
        let names = self.compiler.interfaces.names();
        let shared = &self.node.neighbours;
        let entries = shared.entries().into_iter().filter(|entry| entry.word.is_usable());
        let neighbours = entries.filter_map(|entry| {
            let name = names.get(usize::from(entry.interface))?;
            Some((name.clone(), entry.address, mac_from_u64(entry.word.mac())))
        });
        let tables = self.node.tables.load();
        let stations = shared.macs.entries().filter_map(|entry| self.station(&tables, &entry));
        let backends = self.compiler.policy_slots.backends.names().iter().enumerate();
        let backends = backends.filter_map(|(slot, name)| Some((name.clone(), self.is_up(slot as u32)?)));
        Known {
            neighbours: neighbours.take(MOST).collect(),
            stations: stations.take(MOST).collect(),
            backends: backends.take(MOST).collect(),
        }
    }

    /// Takes on what another process has learned, but for the backends ([`Gateway::believe`]). What finds no place is
    /// learned anew.
    pub(super) fn learn(&self, known: &Known) {
        let (shared, now) = (&self.node.neighbours, self.now());
        for (interface, address, mac) in &known.neighbours {
            let at = self.compiler.interfaces.names().iter().position(|name| name == interface);
            if let Some(slot) =
                at.and_then(|at| shared.find_or_insert(at as u16, addr_key(*address), NEIGHBOURS).ok())
            {
                shared.learn(slot, *mac, false, now);
            }
        }
        let tables = self.node.tables.load();
        for station in &known.stations {
            let Some((bridge, location)) = self.whereabouts(&tables, station, |_| true) else { continue };
            let mac = mac_to_u64(station.mac);
            match station.is_placed {
                true => _ = shared.macs.set_permanent(bridge.segment, mac, location),
                false => shared.macs.learn(bridge.segment, mac, location, now),
            }
        }
    }

    /// A station by the names of things.
    pub(super) fn station(&self, tables: &Tables, entry: &Entry) -> Option<Station> {
        let bridge = tables.bridges.of_segment(entry.segment)?;
        let remote = entry.location.as_remote();
        let remote = remote.and_then(|(remote, _)| self.node.neighbours.vteps.address(remote));
        Some(Station {
            bridge: bridge.name.clone(),
            member: name_of(tables, bridge, bridge.member_at(entry.location)?),
            mac: mac_from_u64(entry.mac),
            remote: remote.map(addr_of),
            is_placed: entry.is_static,
        })
    }

    /// Bridge and location of a station, if it is one that `is_meant`.
    pub(super) fn whereabouts<'t>(
        &self,
        tables: &'t Tables,
        station: &Station,
        is_meant: impl Fn(&Bridge) -> bool,
    ) -> Option<(&'t Bridge, Location)> {
        let Station { bridge, member: name, remote, .. } = station;
        let bridge = tables.bridges.iter().find(|known| known.name == *bridge && is_meant(known))?;
        let member = bridge.members.iter().find(|member| name_of(tables, bridge, member) == *name)?;
        Some((bridge, self.location(tables, member, name, *remote).ok()?))
    }
}
