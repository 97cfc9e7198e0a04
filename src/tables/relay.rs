//! Relays: which interfaces' DHCP messages go to which servers, and whose the answers are (RFC 1542 section 4,
//! RFC 3046, RFC 8415 section 19).

use std::net::{IpAddr, Ipv4Addr};

use crate::neighbours::addr_key;
use crate::ratelimit::Rate;

pub use crate::config::Option82;

/// Sub-options of option 82: RFC 3046 section 2.0, RFC 3527, RFC 5107.
mod sub_option {
    pub const CIRCUIT_ID: u8 = 1;
    pub const REMOTE_ID: u8 = 2;
    pub const LINK_SELECTION: u8 = 5;
    pub const SERVER_ID_OVERRIDE: u8 = 11;
}

/// A relay as configured, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySpec {
    /// Name of the VRF the servers are in.
    pub vrf: String,
    /// What servers know the relay by: `giaddr` of IPv4.
    pub source: IpAddr,
    /// The address of the interface by which servers know the clients' network.
    pub link: IpAddr,
    /// `source` is an address of the interface, in its own VRF.
    pub is_own_source: bool,
    /// The servers.
    pub servers: Vec<IpAddr>,
    /// Circuit ID, or Interface-Id.
    pub id: Vec<u8>,
    /// Remote ID.
    pub remote_id: Option<Vec<u8>>,
    /// Option 82; of IPv4 only.
    pub option82: Option82,
    /// RFC 5107; of IPv4 only.
    pub server_id_override: bool,
    /// Messages of other relays are relayed.
    pub from_relays: bool,
    /// IPv4: most hops a message may have behind it; IPv6: one less may it have.
    pub max_hops: u8,
    /// Messages from clients.
    pub limit: Rate,
}

/// A relay in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// What was configured.
    pub spec: RelaySpec,
    /// Slot of the interface its clients are on.
    pub interface: u16,
    /// Slot of the VRF the servers are in.
    pub vrf: u16,
    /// Sub-options of our option 82, in order; empty if there is none. Of IPv4.
    pub agent: Vec<u8>,
}

impl Relay {
    /// Puts a relay into the tables' terms.
    pub fn new(spec: &RelaySpec, interface: u16, vrf: u16) -> Relay {
        Relay { agent: agent(spec), spec: spec.clone(), interface, vrf }
    }

    /// True if replies may come from there.
    pub fn is_server(&self, addr: IpAddr) -> bool {
        self.spec.servers.contains(&addr)
    }
}

/// The sub-options that a relay adds.
fn agent(spec: &RelaySpec) -> Vec<u8> {
    let mut agent = Vec::new();
    let IpAddr::V4(link) = spec.link else { return agent };
    if spec.option82 == Option82::Off {
        return agent;
    }
    // The config has bounded each to 64 bytes.
    let mut add = |code: u8, value: &[u8]| {
        agent.extend([code, value.len() as u8]);
        agent.extend_from_slice(value);
    };
    add(sub_option::CIRCUIT_ID, &spec.id);
    if let Some(remote_id) = &spec.remote_id {
        add(sub_option::REMOTE_ID, remote_id);
    }
    // RFC 3527 section 3: only where giaddr does not say it.
    if spec.source != spec.link {
        add(sub_option::LINK_SELECTION, &link.octets());
    }
    if spec.server_id_override {
        add(sub_option::SERVER_ID_OVERRIDE, &link.octets());
    }
    agent
}

/// Where replies come to: VRF slot and address in key form.
type End = (u16, u128);

/// The relays of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// Sorted by interface.
    all: Vec<Relay>,
    /// By where replies come to and what they echo, sorted; the last: place in `all`.
    by_id: Vec<(End, Vec<u8>, u16)>,
}

impl Family {
    fn new(mut all: Vec<Relay>) -> Family {
        all.sort_by_key(|relay| relay.interface);
        let place = |(place, relay): (usize, &Relay)| (end_of(relay), relay.spec.id.clone(), place as u16);
        let mut by_id: Vec<_> = all.iter().enumerate().map(place).collect();
        by_id.sort();
        Family { all, by_id }
    }

    /// The relay whose clients are on this interface.
    pub fn on(&self, interface: u16) -> Option<&Relay> {
        let place = self.all.binary_search_by_key(&interface, |relay| relay.interface).ok()?;
        self.all.get(place)
    }

    /// True if replies come there.
    pub fn is_end(&self, vrf: u16, addr: IpAddr) -> bool {
        self.at(vrf, addr).next().is_some()
    }

    /// The relays that replies to this address may be for.
    pub fn at(&self, vrf: u16, addr: IpAddr) -> impl Iterator<Item = &Relay> {
        let end = (vrf, addr_key(addr));
        let from = self.by_id.partition_point(|(other, ..)| *other < end);
        let rest = self.by_id[from..].iter().take_while(move |(other, ..)| *other == end);
        rest.filter_map(|(.., place)| self.all.get(usize::from(*place)))
    }

    /// The one of them that says this of itself.
    pub fn with_id(&self, vrf: u16, addr: IpAddr, id: &[u8]) -> Option<&Relay> {
        let end = (vrf, addr_key(addr));
        let found = self.by_id.binary_search_by(|(other, of, _)| (*other, &of[..]).cmp(&(end, id))).ok()?;
        self.all.get(usize::from(self.by_id[found].2))
    }

    /// All of them.
    pub fn all(&self) -> &[Relay] {
        &self.all
    }
}

fn end_of(relay: &Relay) -> End {
    (relay.vrf, addr_key(relay.spec.source))
}

/// All relays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relays {
    /// Of DHCPv4.
    pub v4: Family,
    /// Of DHCPv6.
    pub v6: Family,
    is_any: bool,
}

impl Relays {
    /// Compiles them.
    pub fn new(all: Vec<Relay>) -> Relays {
        let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(|relay| relay.spec.source.is_ipv4());
        let is_any = !v4.is_empty() || !v6.is_empty();
        Relays { v4: Family::new(v4), v6: Family::new(v6), is_any }
    }

    /// True if there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.is_any
    }

    /// True if a client's `giaddr` would be one of ours in this VRF.
    pub fn is_giaddr(&self, vrf: u16, addr: Ipv4Addr) -> bool {
        self.v4.is_end(vrf, addr.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(interface: u16, vrf: u16, source: &str, id: &str) -> Relay {
        let source: IpAddr = source.parse().expect("an address");
        let link = if source.is_ipv4() { "10.1.0.1" } else { "2001:db8:1::1" };
        let spec = RelaySpec {
            vrf: String::from("any"),
            source,
            link: link.parse().expect("an address"),
            is_own_source: false,
            servers: vec![],
            id: id.into(),
            remote_id: Some(b"r".to_vec()),
            option82: Option82::Append,
            server_id_override: true,
            from_relays: false,
            max_hops: 4,
            limit: Rate { per_s: 1, burst: 1 },
        };
        Relay::new(&spec, interface, vrf)
    }

    #[test]
    fn sub_options_stand_in_order() {
        let expected = [1, 2, b'a', b'b', 2, 1, b'r', 5, 4, 10, 1, 0, 1, 11, 4, 10, 1, 0, 1];
        assert_eq!(relay(1, 0, "10.0.0.1", "ab").agent, expected);
        // giaddr says it already.
        assert_eq!(relay(1, 0, "10.1.0.1", "ab").agent[7..], expected[13..]);
        assert!(relay(1, 0, "2001:db8::1", "ab").agent.is_empty());
    }

    #[test]
    fn each_is_found_by_its_interface_and_by_what_comes_back() {
        let mut all = Vec::new();
        for interface in (0..20u16).rev() {
            all.push(relay(interface, interface % 2, "10.0.0.1", &format!("i{interface}")));
            all.push(relay(interface, 0, &format!("2001:db8::{}", interface / 2), &format!("i{interface}")));
        }
        let relays = Relays::new(all);
        let addr: IpAddr = "10.0.0.1".parse().expect("an address");
        for interface in 0..20u16 {
            assert_eq!(relays.v4.on(interface).expect("it is there").interface, interface);
            let id = format!("i{interface}");
            let found = |vrf| relays.v4.with_id(vrf, addr, id.as_bytes()).map(|relay| relay.interface);
            assert_eq!((found(interface % 2), found(1 - interface % 2)), (Some(interface), None));
        }
        assert!(relays.v4.on(20).is_none());
        let at = |vrf| {
            relays.v4.at(vrf, addr).map(|relay| relay.interface).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!((at(0).len(), at(1).len(), at(2).len()), (10, 10, 0));
        let v6 = |last: u16| format!("2001:db8::{last}").parse().expect("an address");
        assert_eq!(relays.v6.at(0, v6(3)).count(), 2);
        assert!(!relays.v6.is_end(0, v6(10)) && !relays.v6.is_end(1, v6(3)) && !relays.v6.is_end(0, addr));
    }
}
