//! Where decisions can change: every address, port, protocol and DSCP at which something that a config says begins or
//! ends. Between two marks all packets are decided alike, so that one of them speaks for all.

use std::net::IpAddr;

use ipnet::IpNet;

use super::names::View;
use crate::config::{AddressRange, Member, NatPool, PortRange, Service, Side};
use crate::neighbours::addr_key;
use crate::packet::view::protocol;

/// From the first to the last, both included; addresses in key form.
pub type Span = (u128, u128);

/// A protocol that nobody has named stands for all of them (RFC 3692: for experiments).
const OTHER_PROTOCOL: u8 = 253;

/// All of IPv4 and all of IPv6. `::ffff:0:0/96`, which is IPv4's here, is on no wire.
pub const V4: Span = (0xffff_0000_0000, 0xffff_ffff_ffff);
/// See [`V4`].
pub const V6: Span = (0, u128::MAX);

/// Addresses that the pipeline itself treats as others (RFC 1812 section 5.3.7, RFC 4291, RFC 3927).
const SPECIAL: [&str; 10] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/127",
    "fe80::/10",
    "ff00::/8",
    "::ffff:0.0.0.0/96",
];

/// The marks of a config.
pub struct Marks {
    /// Addresses at which something begins, or is over: sorted.
    addresses: Vec<u128>,
    /// Likewise destination ports.
    dst_ports: Vec<u16>,
    /// Likewise source ports.
    src_ports: Vec<u16>,
    /// Protocols that are named, those that sessions are mostly of, and one that is not.
    pub protocols: Vec<u8>,
    /// One DSCP of each kind that rules tell apart.
    pub dscps: Vec<u8>,
    /// Outside addresses of NAT and addresses of services.
    pub outside: Vec<Span>,
}

pub fn span(range: AddressRange) -> Span {
    (addr_key(range.first()), addr_key(range.last()))
}

fn net(net: IpNet) -> Span {
    (addr_key(net.network()), addr_key(net.broadcast()))
}

#[derive(Default)]
struct Builder {
    addresses: Vec<u128>,
    dst_ports: Vec<u16>,
    src_ports: Vec<u16>,
    protocols: Vec<u8>,
    dscp_masks: Vec<u64>,
    outside: Vec<Span>,
}

impl Builder {
    fn span(&mut self, (first, last): Span) {
        self.addresses.push(first);
        self.addresses.extend(last.checked_add(1));
    }

    fn side(&mut self, side: &Side) {
        side.prefix.iter().flat_map(|ranges| ranges.iter()).for_each(|range| self.span(span(*range)));
    }

    fn ports(list: &mut Vec<u16>, ports: PortRange) {
        list.push(ports.first());
        list.extend(ports.last().checked_add(1));
    }

    fn services(&mut self, services: Option<&[Service]>) {
        for service in services.into_iter().flatten() {
            self.protocols.extend(service.protocol());
            if let Some(ports) = service.ports() {
                Builder::ports(&mut self.dst_ports, ports);
            }
        }
    }

    fn outside(&mut self, range: Span) {
        self.span(range);
        self.outside.push(range);
    }
}

impl Marks {
    /// Those of all that the tables were compiled from.
    pub fn of(view: View<'_>) -> Marks {
        let config = view.config;
        let mut all = Builder::default();
        all.protocols.extend([
            protocol::TCP,
            protocol::UDP,
            protocol::ICMP,
            protocol::ICMPV6,
            OTHER_PROTOCOL,
        ]);
        SPECIAL.iter().filter_map(|text| text.parse().ok()).for_each(|special| all.span(net(special)));
        for rule in config.admin_rules.iter().chain(&config.rules) {
            all.side(&rule.from);
            all.side(&rule.to);
            all.services(rule.service.as_deref());
            for ports in rule.source_ports.iter().flat_map(|ports| ports.iter()) {
                Builder::ports(&mut all.src_ports, *ports);
            }
            if let Some(dscps) = &rule.dscp {
                all.dscp_masks.push(dscps.iter().fold(0, |mask, dscp| mask | 1 << dscp.get()));
            }
        }
        for group in &config.groups {
            for member in &group.members {
                if let Member::Addresses(range) = member {
                    all.span(span(*range));
                }
            }
        }
        nat(view, &mut all);
        for service in &config.services {
            all.outside(span(service.address));
            all.services(service.service.as_deref());
        }
        for interface in &view.tables().interfaces[..] {
            let info = &interface.info;
            let v4 = info.v4.iter().map(|(own, len)| (IpAddr::V4(*own), *len));
            let v6 = info.v6.iter().map(|(own, len)| (IpAddr::V6(*own), *len));
            for (own, len) in v4.chain(v6) {
                let (first, last) = IpNet::new(own, len).map_or((addr_key(own), addr_key(own)), net);
                all.span((first, last));
                // Of IPv4 the network's and the broadcast address.
                [addr_key(own), first, last].into_iter().for_each(|one| all.span((one, one)));
            }
            let virtual_ones = info.routers.iter().flat_map(|router| &router.addresses);
            virtual_ones.for_each(|own| all.span((addr_key(*own), addr_key(*own))));
        }
        let rib = view.rib;
        for routes in (0..view.compiler.vrfs.len() as u16).filter_map(|vrf| rib.routes(vrf)) {
            routes.v4.iter().for_each(|(prefix, _)| all.span(net(prefix.into())));
            routes.v6.iter().for_each(|(prefix, _)| all.span(net(prefix.into())));
        }
        translated(view, &mut all);
        all.addresses.sort_unstable();
        all.addresses.dedup();
        for list in [&mut all.dst_ports, &mut all.src_ports] {
            list.sort_unstable();
            list.dedup();
        }
        all.protocols.sort_unstable();
        all.protocols.dedup();
        let kind = |dscp: u8| all.dscp_masks.iter().map(|mask| mask >> dscp & 1 == 1).collect::<Vec<bool>>();
        let mut kinds: Vec<(Vec<bool>, u8)> = (0..64).map(|dscp| (kind(dscp), dscp)).collect();
        kinds.sort();
        kinds.dedup_by(|(one, _), (other, _)| one == other);
        Marks {
            addresses: all.addresses,
            dst_ports: all.dst_ports,
            src_ports: all.src_ports,
            protocols: all.protocols,
            dscps: kinds.into_iter().map(|(_, dscp)| dscp).collect(),
            outside: all.outside,
        }
    }

    /// The parts of `of` in which nothing changes.
    pub fn cells(&self, (first, last): Span) -> Vec<Span> {
        let from = self.addresses.partition_point(|mark| *mark <= first);
        let to = self.addresses.partition_point(|mark| *mark <= last);
        let inner = &self.addresses[from..to.max(from)];
        let starts = std::iter::once(first).chain(inner.iter().copied());
        let ends = inner.iter().map(|mark| mark - 1).chain([last]);
        starts.zip(ends).collect()
    }

    /// The same of destination ports.
    pub fn dst_ports(&self, ports: PortRange) -> Vec<PortRange> {
        port_cells(&self.dst_ports, ports)
    }

    /// The same of source ports.
    pub fn src_ports(&self) -> Vec<PortRange> {
        // Port 0 is no port to send from, and where nothing tells ports apart an ephemeral one is the better example.
        match self.src_ports.is_empty() {
            true => PortRange::new(49_152, u16::MAX).into_iter().collect(),
            false => port_cells(&self.src_ports, PortRange::ALL),
        }
    }
}

fn port_cells(marks: &[u16], ports: PortRange) -> Vec<PortRange> {
    let inner: Vec<u16> =
        marks.iter().copied().filter(|mark| ports.first() < *mark && *mark <= ports.last()).collect();
    let starts = std::iter::once(ports.first()).chain(inner.iter().copied());
    let ends = inner.iter().map(|mark| mark - 1).chain([ports.last()]);
    starts.zip(ends).filter_map(|(first, last)| PortRange::new(first, last)).collect()
}

fn nat(view: View<'_>, all: &mut Builder) {
    let nat = &view.config.nat;
    for rule in &nat.sources {
        all.side(&rule.from);
        all.side(&rule.to);
        all.services(rule.service.as_deref());
        if let Some(NatPool::Addresses(ranges)) = &rule.pool {
            ranges.iter().for_each(|range| all.outside(span(*range)));
        }
    }
    for rule in &nat.destinations {
        all.outside((addr_key(rule.address), addr_key(rule.address)));
        all.side(&rule.from);
        all.services(rule.service.as_deref());
    }
    for rule in &nat.statics {
        all.outside(span(rule.outside));
        all.span(span(rule.inside));
        all.side(&rule.to);
    }
    for rule in &nat.nptv6 {
        all.outside(span(rule.outside));
        all.span(span(rule.inside));
        all.side(&rule.to);
    }
    for rule in &nat.nat64 {
        all.outside(span(rule.prefix));
        all.side(&rule.from);
        rule.pool.iter().for_each(|range| all.outside(span(*range)));
    }
}

/// Marks as they are seen from outside of a translation of whole prefixes.
fn translated(view: View<'_>, all: &mut Builder) {
    let nat = &view.config.nat;
    let known = all.addresses.clone();
    for rule in &nat.statics {
        let ((inside, last), (outside, _)) = (span(rule.inside), span(rule.outside));
        let inner = known.iter().filter(|mark| (inside..=last).contains(*mark));
        all.addresses.extend(inner.map(|mark| mark - inside + outside));
    }
    for rule in &nat.nat64 {
        if let Some(prefix) = rule.embedding() {
            let inner = known.iter().filter(|mark| (V4.0..=V4.1).contains(*mark));
            all.addresses.extend(inner.map(|mark| prefix.embed(*mark as u32)));
        }
    }
}
