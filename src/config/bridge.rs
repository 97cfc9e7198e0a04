//! `[[bridge]]`: layer-2 segments of several ports, VLANs and VNIs.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Config;
use super::sections::{Encapsulation, Interface, OuterDscp, RouterAdvertisements, SourceCheck, Vni};
use super::value::{GroupName, Mtu, Name, PortName, Prefix, Ranged, Tpid, Vlan, VrfName, ZoneName};

/// `[[bridge]]`: joins its members into one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// What interfaces and commands call it.
    pub name: Name,
    /// Whose frames it passes on to each other.
    pub members: Vec<BridgeMember>,
    /// The group of virtual routers whose Active passes them on, alone of the nodes; absent: of a node
    /// with a `[pair]` the only one; with several none, and every node does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Seconds after which a silent station is forgotten (IEEE 802.1Q section 8.8.3: 300).
    #[serde(default = "Bridge::default_ageing")]
    pub ageing_s: Ranged<10, 1_000_000>,
    /// Stations of a member that says nothing else.
    #[serde(default = "Bridge::default_macs")]
    pub max_macs: Ranged<1, 65_536>,
    /// Frames per second that a member which says nothing else may have sent to all others: broadcasts, multicasts and
    /// those to stations nobody knows. 0: none.
    #[serde(default = "Bridge::default_storm")]
    pub storm_pps: Ranged<0, 10_000_000>,
    /// Whether the gateway answers ARP requests and neighbour solicitations for stations it knows, in their name.
    #[serde(default = "Bridge::yes")]
    pub suppress: bool,
    /// Seconds between two frames that look for loops; 0: none are sent.
    #[serde(default = "Bridge::default_probe")]
    pub loop_probe_s: Ranged<0, 3600>,
    /// Seconds for which a member that closes a loop is shut.
    #[serde(default = "Bridge::default_hold")]
    pub loop_hold_s: Ranged<1, 86_400>,
    /// With members in zones: whether what is neither IP nor ARP passes between them; absent: no. Rules say nothing of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_protocols: bool,
    /// Whether multicast goes only to members behind which somebody listens (RFC 4541); absent: no. What follows goes
    /// with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snooping: bool,
    /// Where groups go that nobody listens to.
    #[serde(default, skip_serializing_if = "UnknownMulticast::is_default")]
    pub unknown_multicast: UnknownMulticast,
    /// Whether who leaves a group is the last behind his member, and nobody is asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fast_leave: bool,
    /// Whether the gateway asks who listens, unless somebody with a lower address does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub querier: bool,
    /// Seconds between two queries (RFC 3376 section 8.2): of ours, and what is expected of others; absent: 125.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_interval_s: Option<Ranged<10, 3600>>,
    /// Groups that a member may listen to; absent: 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_groups: Option<Ranged<1, 4096>>,
}

/// Where multicast goes that nobody listens to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownMulticast {
    /// To all members.
    #[default]
    Flood,
    /// To multicast routers only.
    Routers,
}

impl UnknownMulticast {
    fn is_default(&self) -> bool {
        *self == UnknownMulticast::default()
    }
}

/// One of `members`: a port untagged, a VLAN of it, a QinQ pair, or a VNI with its tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeMember {
    /// The port it is on; absent with `vni`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortName>,
    /// Its tags; absent: untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// The zone of what is behind it: what it and other members say to each other is for the firewall's rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// Whether a multicast router is behind it that is not to be found out about.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multicast_router: bool,
    /// The outer TPID; only with a QinQ pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpid: Option<Tpid>,
    /// The VXLAN segment, instead of a port. What follows down to `udp_checksum` goes with it, as in `[[interface]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Our tunnel end point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<IpAddr>,
    /// The other tunnel end points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<IpAddr>,
    /// Frames are accepted from tunnel end points here as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_from: Vec<Prefix>,
    /// The VRF tunnels go through; absent: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_vrf: Option<VrfName>,
    /// What the tunnels are; absent: VXLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
    /// UDP port of the tunnels; absent: 4789, with Geneve 6081.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<Ranged<1, 65535>>,
    /// DSCP of outer headers; absent: that of the inner packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<OuterDscp>,
    /// TTL or hop limit of outer headers; absent: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ranged<1, 255>>,
    /// Whether frames teach behind which remote stations are; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    /// Whether outer UDP headers carry a checksum; absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_checksum: Option<bool>,
    /// The longest IP packet; absent: 1500, with `vni` what a tunnel leaves of the MTU around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Stations it may have; absent: as the bridge says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_macs: Option<Ranged<1, 65_536>>,
    /// Frames per second that may go from it to all others; absent: as the bridge says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm_pps: Option<Ranged<0, 10_000_000>>,
}

impl Bridge {
    /// Members of a bridge at most: each broadcast goes to all of them.
    pub const MAX_MEMBERS: usize = 64;

    fn default_ageing() -> Ranged<10, 1_000_000> {
        Ranged::constant(300)
    }

    /// As many as neighbours of an interface.
    fn default_macs() -> Ranged<1, 65_536> {
        Ranged::constant(1024)
    }

    fn default_storm() -> Ranged<0, 10_000_000> {
        Ranged::constant(1000)
    }

    fn default_probe() -> Ranged<0, 3600> {
        Ranged::constant(5)
    }

    fn default_hold() -> Ranged<1, 86_400> {
        Ranged::constant(60)
    }

    fn yes() -> bool {
        true
    }
}

impl BridgeMember {
    /// What counters and commands call it: `seg-7/lan.100`, `seg-7/vni5001`. No interface has such a name.
    pub fn name(&self, bridge: &Name) -> Name {
        let end = match (&self.port, &self.vlan, self.vni) {
            (_, _, Some(vni)) => format!("vni{vni}"),
            (Some(port), None, _) => port.to_string(),
            (Some(port), Some(Vlan::Single(vlan)), _) => format!("{port}.{}", vlan.get()),
            (Some(port), Some(Vlan::QinQ { outer, inner }), _) => {
                format!("{port}.{}.{}", outer.get(), inner.get())
            }
            (None, ..) => String::from("nowhere"),
        };
        Name::compound(&format!("{bridge}/{end}"))
    }

    /// It, as an interface would be on the same end of a link.
    fn as_interface(&self, bridge: &Name) -> Interface {
        Interface {
            name: self.name(bridge),
            port: self.port.clone(),
            vlan: self.vlan,
            vni: self.vni,
            bridge: None,
            vtep: self.vtep,
            remotes: self.remotes.clone(),
            accept_from: self.accept_from.clone(),
            underlay_vrf: self.underlay_vrf.clone(),
            encapsulation: self.encapsulation,
            udp_port: self.udp_port,
            dscp: self.dscp,
            ttl: self.ttl,
            learning: self.learning,
            udp_checksum: self.udp_checksum,
            tpid: self.tpid,
            zone: self.zone.clone(),
            vrf: Name::default_vrf(),
            addresses: Vec::new(),
            mtu: self.mtu,
            mac: None,
            source_check: SourceCheck::Off,
            clamp_mss: false,
            router_advertisements: RouterAdvertisements::Off,
            dhcp_relay: None,
            dhcpv6_relay: None,
        }
    }
}

/// An end of a link: an interface, or a member of a bridge.
#[derive(Clone, Debug)]
pub struct End {
    /// Where it stands in the config.
    pub key: String,
    /// It, or what it would be as an interface.
    pub interface: Interface,
    /// Of a member: positions of its bridge and in that.
    pub member: Option<(usize, usize)>,
}

impl Config {
    /// All ends of links: the interfaces in their order, then the members of bridges.
    pub fn ends(&self) -> Vec<End> {
        let interfaces = self.interfaces.iter().enumerate().map(|(index, interface)| End {
            key: format!("interface[{index}]"),
            interface: interface.clone(),
            member: None,
        });
        let members = self.bridges.iter().enumerate().flat_map(|(index, bridge)| {
            bridge.members.iter().enumerate().map(move |(at, member)| End {
                key: format!("bridge[{index}].members[{at}]"),
                interface: member.as_interface(&bridge.name),
                member: Some((index, at)),
            })
        });
        interfaces.chain(members).collect()
    }

    /// The port whose device lends its MAC address to what is on this bridge: that of its first member.
    pub fn port_of_bridge(&self, bridge: &Name) -> Option<&PortName> {
        let bridge = self.bridges.iter().find(|known| known.name == *bridge)?;
        let first = bridge.members.first()?;
        let carrier = first.as_interface(&bridge.name);
        first.port.as_ref().or_else(|| carrier.carrier(&self.interfaces)?.port.as_ref())
    }
}
