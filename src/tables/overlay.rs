//! Overlays: the VXLAN (RFC 7348) and Geneve (RFC 8926) segments that interfaces are ends of, as the packet path needs them.

use std::net::IpAddr;

use ahash::AHashMap;
use ipnet::IpNet;

use crate::config::Encapsulation;
use crate::neighbours::{addr_key, is_v4_key};
use crate::roles::Roles;
use crate::tables::virtual_router::Held;

/// No overlay: a number that is never given out.
pub const NO_OVERLAY: u16 = u16::MAX;

/// A segment as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaySpec {
    /// Virtual network identifier, 24 bits.
    pub vni: u32,
    /// Our tunnel end point.
    pub vtep: IpAddr,
    /// The others that broadcasts go to.
    pub remotes: Vec<IpAddr>,
    /// Others that frames are accepted from.
    pub accept_from: Vec<IpNet>,
    /// Name of the VRF tunnels go through.
    pub underlay_vrf: String,
    /// What the tunnels are.
    pub encapsulation: Encapsulation,
    /// UDP destination port.
    pub udp_port: u16,
    /// DSCP of outer headers; `None`: the inner one.
    pub dscp: Option<u8>,
    /// TTL or hop limit of outer headers.
    pub ttl: u8,
    /// Stations are followed to where their frames come from.
    pub learning: bool,
    /// Outer UDP headers carry a checksum.
    pub udp_checksum: bool,
}

impl OverlaySpec {
    /// RFC 1340's default TTL, as Linux gives its own packets.
    pub const DEFAULT_TTL: u8 = 64;
}

/// A segment in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// What was configured.
    pub spec: OverlaySpec,
    /// Slot of its interface.
    pub interface: u16,
    /// Slot of the VRF tunnels go through.
    pub underlay_vrf: u16,
    /// The virtual router that has its tunnel end point: nothing comes out of tunnels, or goes into one, unless this node
    /// forwards for it. `None`: the end point is this node's own.
    pub router: Option<Held>,
    /// Keys of `spec.remotes`, sorted.
    remotes: Vec<u128>,
}

impl Overlay {
    /// Puts a segment into the tables' terms.
    pub fn new(spec: &OverlaySpec, interface: u16, underlay_vrf: u16, router: Option<Held>) -> Overlay {
        let mut remotes: Vec<u128> = spec.remotes.iter().map(|remote| addr_key(*remote)).collect();
        remotes.sort_unstable();
        Overlay { spec: spec.clone(), interface, underlay_vrf, router, remotes }
    }

    /// True if this node is to use its tunnels: nobody else has their end.
    #[inline(always)]
    pub fn is_here(&self, roles: &Roles) -> bool {
        self.router.is_none_or(|router| roles.forwards(router.role))
    }

    /// True if tunnels to and from this address (in key form) are allowed.
    pub fn permits(&self, remote: u128) -> bool {
        self.remotes.binary_search(&remote).is_ok() || self.accepts(remote)
    }

    fn accepts(&self, remote: u128) -> bool {
        self.spec.accept_from.iter().any(|prefix| match prefix {
            IpNet::V4(prefix) => {
                is_v4_key(remote) && prefix.contains(&std::net::Ipv4Addr::from(remote as u32))
            }
            IpNet::V6(prefix) => !is_v4_key(remote) && prefix.contains(&std::net::Ipv6Addr::from(remote)),
        })
    }

    /// The only remote there is, in key form.
    pub fn only_remote(&self) -> Option<u128> {
        match self.remotes[..] {
            [only] if self.spec.accept_from.is_empty() => Some(only),
            _ => None,
        }
    }

    /// Keys of the configured remotes.
    pub fn remotes(&self) -> &[u128] {
        &self.remotes
    }
}

/// Where a tunnel ends: VRF slot, address in key form, UDP port.
type End = (u16, u128, u16);

/// All segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlays {
    all: Vec<Overlay>,
    by_vni: AHashMap<(End, u32), u16>,
    /// Sorted. Few, usually one: our own addresses.
    ends: Vec<End>,
    /// UDP ports of the ends, one bit each; absent: none.
    ports: Option<Box<[u64; 1024]>>,
    /// By VRF slot: whether tunnels end there.
    vrfs: Vec<bool>,
}

impl Overlays {
    /// Compiles them; their numbers are their places.
    pub fn new(all: Vec<Overlay>) -> Overlays {
        let mut overlays = Overlays::default();
        for (number, overlay) in all.iter().enumerate() {
            let spec = &overlay.spec;
            let end = (overlay.underlay_vrf, addr_key(spec.vtep), spec.udp_port);
            overlays.by_vni.insert((end, spec.vni), number as u16);
            if let Err(place) = overlays.ends.binary_search(&end) {
                overlays.ends.insert(place, end);
            }
            let ports = overlays.ports.get_or_insert_with(|| Box::new([0; 1024]));
            ports[usize::from(spec.udp_port / 64)] |= 1 << (spec.udp_port % 64);
            let vrf = usize::from(overlay.underlay_vrf);
            overlays.vrfs.resize(overlays.vrfs.len().max(vrf + 1), false);
            overlays.vrfs[vrf] = true;
        }
        overlays.all = all;
        overlays
    }

    /// The segment with this number.
    #[inline]
    pub fn get(&self, number: u16) -> Option<&Overlay> {
        self.all.get(usize::from(number))
    }

    /// True if there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them.
    pub fn all(&self) -> &[Overlay] {
        &self.all
    }

    /// True if tunnels end in this VRF.
    #[inline]
    pub fn end_in(&self, vrf: u16) -> bool {
        self.vrfs.get(usize::from(vrf)).copied().unwrap_or(false)
    }

    /// True if a tunnel may end at this UDP port.
    #[inline]
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.as_ref().is_some_and(|ports| ports[usize::from(port / 64)] >> (port % 64) & 1 != 0)
    }

    /// True if tunnels end there.
    #[inline]
    pub fn is_end(&self, vrf: u16, addr: u128, port: u16) -> bool {
        self.ends.binary_search(&(vrf, addr, port)).is_ok()
    }

    /// True if tunnels end at this address.
    pub fn is_vtep(&self, vrf: u16, addr: u128) -> bool {
        self.ends.iter().any(|(end_vrf, end, _)| (*end_vrf, *end) == (vrf, addr))
    }

    /// True if one of the segments has tunnels between these ends.
    pub fn is_tunnel(&self, vrf: u16, vtep: u128, port: u16, remote: u128) -> bool {
        self.is_end(vrf, vtep, port)
            && self.all.iter().any(|overlay| {
                let spec = &overlay.spec;
                (overlay.underlay_vrf, addr_key(spec.vtep), spec.udp_port) == (vrf, vtep, port)
                    && overlay.permits(remote)
            })
    }

    /// The segment of a VNI that ends there.
    pub fn find(&self, vrf: u16, addr: u128, port: u16, vni: u32) -> Option<&Overlay> {
        let number = self.by_vni.get(&((vrf, addr, port), vni))?;
        self.get(*number)
    }
}
