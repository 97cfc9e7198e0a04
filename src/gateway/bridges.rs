//! Bridges: what is shown of them, and stations that a control plane places.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Gateway;
use crate::config::{Mac, Name};
use crate::control::{
    BridgeChanged, BridgeEntry, Fault, ListenerEntry, MacEntry, MacPage, MacsAdded, MacsQuery, MacsRemoved,
    MemberEntry, MemberOpened,
};
use crate::listeners::Group;
use crate::macs::{Entry, Location};
use crate::neighbours::{addr_key, addr_of, mac_from_u64, mac_to_u64};
use crate::tables::bridge::{Bridge, Member};
use crate::tables::{NO_INTERFACE, Tables};

/// Stations of one answer.
const PAGE: usize = 10_000;
/// Listeners of a bridge in an answer.
const MOST_LISTENERS: usize = 1000;

/// A member's name within its bridge.
pub(super) fn name_of(tables: &Tables, bridge: &Bridge, member: &Member) -> String {
    let name = &tables.interface(member.interface).info.name;
    name.strip_prefix(&bridge.name).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name).to_owned()
}

fn find_bridge<'a>(tables: &'a Tables, name: &Name) -> Result<&'a Bridge, Fault> {
    let found = tables.bridges.iter().find(|bridge| bridge.name == name.as_str());
    found.ok_or_else(|| Fault::not_found(format!("no bridge {name}: bridges are made by the config")))
}

fn find_member<'a>(tables: &Tables, bridge: &'a Bridge, name: &str) -> Result<&'a Member, Fault> {
    let found = bridge.members.iter().find(|member| name_of(tables, bridge, member) == name);
    found.ok_or_else(|| {
        let known: Vec<String> =
            bridge.members.iter().map(|member| name_of(tables, bridge, member)).collect();
        Fault::not_found(format!("bridge {} has no member {name}; it has {}", bridge.name, known.join(", ")))
    })
}

impl Gateway {
    pub(super) fn show_bridges(&self) -> Vec<BridgeEntry> {
        let (tables, sums, now) = (self.node().tables.load(), self.interface_sums(), self.now());
        let shared = &self.node().neighbours;
        let member = |bridge: &Bridge, member: &Member| {
            let interface = tables.interface(member.interface);
            let sums = sums.get(usize::from(member.interface)).copied().unwrap_or_default();
            let shut = self.node().limits.segments.shut_until(member.interface);
            let shut_s = (now < shut).then(|| shut.since(now).as_secs() + 1);
            let state = match (interface.up, shut_s) {
                (false, _) => "down",
                (true, Some(_)) => "loop",
                (true, None) => "up",
            };
            MemberEntry {
                name: name_of(&tables, bridge, member),
                state: state.to_owned(),
                shut_s,
                macs: shared.macs.count(member.interface),
                max_macs: member.max_macs,
                mtu_bytes: interface.mtu_bytes.into(),
                rx_packets: sums.rx_packets,
                rx_bytes: sums.rx_bytes,
                tx_packets: sums.tx_packets,
                tx_bytes: sums.tx_bytes,
                drops: sums.drops,
            }
        };
        let entry = |bridge: &Bridge| BridgeEntry {
            name: bridge.name.clone(),
            interface: (bridge.interface != NO_INTERFACE)
                .then(|| tables.interface(bridge.interface).info.name.clone()),
            ageing_s: bridge.ageing_s,
            members: bridge.members.iter().map(|known| member(bridge, known)).collect(),
            queriers: self.queriers(bridge),
            listeners: self.listeners(&tables, bridge),
        };
        tables.bridges.iter().map(entry).collect()
    }

    fn queriers(&self, bridge: &Bridge) -> Vec<String> {
        let (listeners, now_s) = (&self.node().neighbours.listeners, self.now().as_secs());
        let is_there = |family: &usize| {
            bridge.snooping.is_some() && listeners.has_querier(bridge.number(), *family, now_s)
        };
        [0, 1].into_iter().filter(is_there).map(|family| ["ipv4", "ipv6"][family].to_owned()).collect()
    }

    fn listeners(&self, tables: &Tables, bridge: &Bridge) -> Vec<ListenerEntry> {
        if bridge.snooping.is_none() {
            return Vec::new();
        }
        let entries = self.node().neighbours.listeners.entries(self.now().as_secs());
        let mut found: Vec<_> = entries
            .filter_map(|listener| Some((bridge.member(listener.member)?, listener)))
            .map(|(member, listener)| ListenerEntry {
                member: name_of(tables, bridge, member),
                group: match listener.group {
                    group if group.is_router() => None,
                    Group::V4(group) => Some(Ipv4Addr::from(group).into()),
                    Group::V6(group) => Some(Ipv6Addr::from(group).into()),
                },
                left_s: listener.left_s,
            })
            .collect();
        found.sort_unstable_by(|a, b| (a.group, &a.member).cmp(&(b.group, &b.member)));
        // Two workers may have heard one at the same time.
        found.dedup_by(|a, b| (a.group, &a.member) == (b.group, &b.member));
        found.truncate(MOST_LISTENERS);
        found
    }

    pub(super) fn show_macs(&self, query: &MacsQuery) -> Result<MacPage, Fault> {
        let (tables, now_s) = (self.node().tables.load(), self.now().as_secs());
        let shared = &self.node().neighbours;
        let wanted = query.bridge.as_ref().map(|name| find_bridge(&tables, name)).transpose()?;
        let key = |entry: &Entry| u64::from(entry.segment) << 48 | entry.mac;
        let mut found: Vec<(Entry, &Bridge, &Member)> = shared
            .macs
            .entries()
            .filter(|entry| query.after.is_none_or(|after| key(entry) > after))
            .filter(|entry| wanted.is_none_or(|wanted| wanted.segment == entry.segment))
            .filter_map(|entry| {
                let bridge = tables.bridges.of_segment(entry.segment)?;
                Some((entry, bridge, bridge.member_at(entry.location)?))
            })
            .filter(|(_, bridge, member)| {
                query.member.as_ref().is_none_or(|wanted| name_of(&tables, bridge, member) == *wanted)
            })
            .collect();
        found.sort_unstable_by_key(|(entry, ..)| key(entry));
        // Two workers may have let one in at the same time.
        found.dedup_by_key(|(entry, ..)| key(entry));
        let next = (found.len() > PAGE).then(|| key(&found[PAGE - 1].0));
        let macs = found.iter().take(PAGE).filter_map(|(entry, bridge, member)| {
            let remote = entry.location.as_remote().and_then(|(remote, _)| shared.vteps.address(remote));
            Some(MacEntry {
                bridge: bridge.name.clone(),
                mac: Mac::new(mac_from_u64(entry.mac)).ok()?,
                member: name_of(&tables, bridge, member),
                remote: remote.map(addr_of),
                age_s: (!entry.is_static).then(|| now_s.saturating_sub(entry.seen_s)),
            })
        });
        Ok(MacPage { next, macs: macs.collect() })
    }

    pub(super) fn add_macs(&self, added: &MacsAdded) -> Result<BridgeChanged, Fault> {
        let tables = self.node().tables.load();
        let bridge = find_bridge(&tables, &added.bridge)?;
        let member = find_member(&tables, bridge, &added.member)?;
        let location = self.location(&tables, member, &added.member, added.remote)?;
        let macs = &self.node().neighbours.macs;
        // What is placed makes room for nobody.
        let most = macs.capacity() / 4;
        let placed = macs.entries().filter(|entry| entry.is_static).count();
        if placed + added.macs.len() > most {
            return Err(Fault::refused(format!(
                "{placed} stations are placed already; at most {most} of the MAC table's {} places are for them",
                macs.capacity()
            )));
        }
        for (done, mac) in added.macs.iter().enumerate() {
            if !macs.set_permanent(bridge.segment, mac_to_u64(mac.bytes()), location) {
                return Err(Fault::refused(format!(
                    "no room for {mac} in the MAC table, which has {} places; the {done} before it are placed",
                    macs.capacity()
                )));
            }
        }
        Ok(BridgeChanged { changed: added.macs.len() as u64 })
    }

    /// Where a station of a bridge's member is.
    pub(super) fn location(
        &self,
        tables: &Tables,
        member: &Member,
        name: &str,
        remote: Option<IpAddr>,
    ) -> Result<Location, Fault> {
        let (number, overlay) = match (member.vni, remote) {
            (None, None) => return Ok(Location::local(member.interface)),
            (None, Some(remote)) => {
                return Err(Fault::refused(format!(
                    "member {name} is on a port: leave the remote {remote} out"
                )));
            }
            (Some((number, overlay)), _) => (number, tables.overlays.get(overlay)),
        };
        let remote = remote.or_else(|| Some(addr_of(overlay?.only_remote()?))).ok_or_else(|| {
            Fault::refused(format!("member {name} has several remotes: say behind which one the station is"))
        })?;
        let key = addr_key(remote);
        if !overlay.is_some_and(|overlay| overlay.permits(key)) {
            return Err(Fault::refused(format!(
                "{remote} is not a remote of member {name}: name it in remotes, or its network in accept_from"
            )));
        }
        let number_of = self.node().neighbours.vteps.find_or_insert(key, self.now());
        let remote = number_of.ok_or_else(|| Fault::refused("the table of remotes is full; try again"))?;
        Ok(Location::remote(remote, number))
    }

    pub(super) fn remove_macs(&self, removed: &MacsRemoved) -> Result<BridgeChanged, Fault> {
        let tables = self.node().tables.load();
        let bridge = find_bridge(&tables, &removed.bridge)?;
        let macs = &self.node().neighbours.macs;
        let gone = removed.macs.iter().filter(|mac| macs.forget(bridge.segment, mac_to_u64(mac.bytes())));
        match gone.count() as u64 {
            0 => Err(Fault::not_found(format!(
                "bridge {} knows none of these stations; see show macs",
                bridge.name
            ))),
            changed => Ok(BridgeChanged { changed }),
        }
    }

    pub(super) fn open_member(&self, opened: &MemberOpened) -> Result<BridgeChanged, Fault> {
        let tables = self.node().tables.load();
        let bridge = find_bridge(&tables, &opened.bridge)?;
        let member = find_member(&tables, bridge, &opened.member)?;
        let segments = &self.node().limits.segments;
        let was_shut = segments.is_shut(member.interface, self.now());
        segments.open(member.interface);
        Ok(BridgeChanged { changed: was_shut.into() })
    }
}
