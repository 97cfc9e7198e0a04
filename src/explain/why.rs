//! Why not: what would have to change for a packet to pass.

use std::net::IpAddr;

use super::names::View;
use crate::config::Service;
use crate::packet::DropReason;
use crate::packet::view::protocol;
use crate::pipeline::route;
use crate::pipeline::trail::{Notes, Seen};
use crate::pipeline::{Decision, Question};
use crate::tables::NO_INTERFACE;
use crate::tables::policy::{DEFAULT_RULE, NO_ZONE, Ruling, SELF};

/// What is known of the packet.
pub struct Asked<'a> {
    pub view: View<'a>,
    pub seen: &'a Seen,
    pub notes: &'a Notes,
    pub decision: Option<Decision>,
}

/// What would have to change; `reason` is the drop reason's name.
pub fn suggestions(asked: &Asked<'_>, reason: &str) -> Vec<String> {
    use DropReason as R;
    let Some(reason) = R::all().find(|known| known.name() == reason) else { return Vec::new() };
    let mut told = Vec::new();
    let interface = || asked.view.interface(asked.seen.interface);
    let question = asked.seen.question.as_ref();
    match (reason, question) {
        (R::FirewallDeny | R::FirewallReject, Some(question)) => told.extend(firewall(asked, question)),
        (R::NoRoute, Some(question)) => told.extend(no_route(asked, question)),
        (R::SourceCheck, Some(question)) => told.push(source(asked, question)),
        (R::Blackhole | R::UnreachableRoute, Some(question)) => {
            let way = asked.notes.way.map_or((question.vrf, question.dst), |(vrf, addr, _)| (vrf, addr));
            if let Some((net, what)) = asked.view.route(way.0, way.1) {
                told.push(format!(
                    "{net} is a {what}: delete it (softgate del route {net}), or add a more specific route"
                ));
            }
        }
        (R::NatNoMapping, Some(question)) => told.push(format!(
            "{} is an outside address of NAT, and nobody inside has a mapping with this port: only answers come in. \
             For a server inside write a [[nat.destination]] with address = \"{}\"",
            question.dst, question.dst
        )),
        (R::NoBackend, _) => told.push(
            "no backend of the service takes new flows: see `softgate show services` for their health, drained and \
             disabled ones"
                .to_owned(),
        ),
        (R::UnknownVlan, _) => told.push(
            "no interface is on this port with these tags: the packet was expected with the tags of an interface, or \
             an [[interface]] with this `vlan` is missing"
                .to_owned(),
        ),
        (R::NotForUs, _) => told.push(format!(
            "the destination MAC address is not that of {}: its sender has an old ARP entry, or takes another for its \
             gateway; of a virtual router only the Active answers",
            interface()
        )),
        (R::TtlExpired, _) => told.push("its TTL ends here: it comes round in a loop, or is a traceroute's".to_owned()),
        (R::FragmentationNeeded | R::PacketTooBig, _) => {
            let egress = match asked.decision {
                Some(Decision::Session(allowed)) => Some(allowed.egress),
                Some(Decision::Forward { egress, .. }) => Some(egress),
                _ => None,
            };
            let mtu = egress.map_or_else(String::new, |egress| {
                let mtu = asked.view.tables().interface(egress).mtu_bytes;
                format!(" (mtu = {mtu} of {})", asked.view.interface(egress))
            });
            told.push(format!(
                "it is longer than its egress takes{mtu}: raise `mtu`, or let TCP know by `clamp_mss = true`"
            ));
        }
        (R::PortDown, _) => told.push("its egress has no carrier: see `softgate show ports`".to_owned()),
        (R::NeighbourFailed | R::NeighbourQueueFull, _) => told.push(
            "the next hop does not answer ARP or ND: see `softgate show neighbours`; is it in this network, and up?"
                .to_owned(),
        ),
        (R::NatPoolExhausted, _) => told.push(
            "no port of the pool is free: give it more addresses, or raise `nat.max_blocks_per_host` if one host \
             took them; see `softgate show nat`"
                .to_owned(),
        ),
        (R::NatHostQuota, _) => {
            told.push("the host has as many ports as it may: raise `nat.max_blocks_per_host`".to_owned());
        }
        (R::TcpNoSession, _) => told.push(
            "it is of no session, and is no SYN: a connection is only taken up in its midst with \
             `flows.loose_tcp = true`"
                .to_owned(),
        ),
        (R::NoHostPath, _) => {
            told.push("it is for the gateway itself, which has no service there".to_owned());
        }
        (R::VirtualRouterBackup, _) => {
            told.push("the other node is the Active of this virtual router: see `softgate show ha`".to_owned());
        }
        (R::BridgeZoneHairpin, _) => told.push(
            "its destination is in the same bridged segment, whose members have zones: it has to be sent to the \
             station itself and not to the gateway"
                .to_owned(),
        ),
        (R::VxlanUnknownRemote, _) => {
            told.push("the tunnel end point is not among `remotes` and `accept_from` of the interface".to_owned());
        }
        _ => {}
    }
    told
}

fn firewall(asked: &Asked<'_>, question: &Question) -> Vec<String> {
    let view = asked.view;
    let zone_of = |slot: u16| view.tables().interface(slot).zone;
    let refused: Option<Ruling> = match asked.decision {
        Some(Decision::Refused(ruling, _)) => Some(ruling),
        _ => None,
    };
    let (from, to) = match (asked.notes.from_zone, asked.notes.to_zone, asked.seen.bridged_to) {
        (_, _, Some(egress)) if egress != NO_INTERFACE => (zone_of(question.ingress), zone_of(egress)),
        (Some(from), Some(to), _) => (from, to),
        _ => {
            let from = view.interface(asked.seen.interface);
            return vec![format!(
                "{from} has no zone, and into a zone there is no way from it: write `zone = ...` at [[interface]] {from}"
            )];
        }
    };
    if from == NO_ZONE {
        let from = view.interface(asked.seen.interface);
        return vec![format!("{from} has no zone: write `zone = ...` at [[interface]] {from}")];
    }
    if to == NO_ZONE {
        return vec!["its egress has no zone: give the interface one".to_owned()];
    }
    let (dst, port) = asked.notes.destination.map_or((question.dst, question.dst_port), |(a, p, _)| (a, p));
    let rule = format!(
        "name = \"NAME\", action = \"allow\", from = {{ zone = \"{}\", prefix = \"{}\" }}, to = {{ zone = \"{}\"{} }}, \
         service = \"{}\"",
        view.zone(from),
        question.src,
        view.zone(to),
        if to == SELF { String::new() } else { format!(", prefix = \"{dst}\"") },
        service(question.protocol, port, question.icmp_type),
    );
    match refused {
        Some(Ruling { rule: DEFAULT_RULE, .. }) => vec![format!(
            "no rule allows {} > {}: softgate add rule '{rule}'",
            view.zone(from),
            view.zone(to)
        )],
        Some(ruling) => {
            let name = view.rule(ruling.rule);
            let is_admin = view.config.admin_rules.iter().any(|rule| rule.name.as_str() == name);
            let admin = if is_admin { " --admin" } else { "" };
            vec![format!(
                "rule {name} refuses it: change that, or put another before it: softgate add rule '{rule}' --before \
                 {name}{admin}"
            )]
        }
        None => Vec::new(),
    }
}

fn service(upper: u8, port: u16, icmp_type: u8) -> String {
    let service = Service::of_protocol(upper);
    match upper {
        protocol::ICMP | protocol::ICMPV6 => format!("{service}/{icmp_type}"),
        _ if service.has_ports() => format!("{service}/{port}"),
        _ => service.to_string(),
    }
}

fn no_route(asked: &Asked<'_>, question: &Question) -> Vec<String> {
    let view = asked.view;
    let (vrf, addr) = asked.notes.way.map_or((question.vrf, question.dst), |(vrf, addr, _)| (vrf, addr));
    let name = view.vrf(vrf);
    let in_vrf = if vrf == 0 { String::new() } else { format!(" --vrf {name}") };
    let mut told = vec![format!(
        "no route of VRF {name} leads to {addr}: softgate add route {} via ...{in_vrf}",
        host(addr)
    )];
    for other in (0..view.compiler.vrfs.len() as u16).filter(|other| *other != vrf) {
        if route::of_own(view.tables(), other, addr).is_some() {
            let other = view.vrf(other);
            told.push(format!("VRF {other} has one: a route may lead there, `via = [\"ADDRESS@{other}\"]`"));
        }
    }
    told
}

fn host(addr: IpAddr) -> String {
    format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 })
}

fn source(asked: &Asked<'_>, question: &Question) -> String {
    let view = asked.view;
    let interface = view.interface(asked.seen.interface);
    if route::is_own(view.tables(), question.vrf, question.src) {
        return format!("{} is an address of the gateway itself", question.src);
    }
    match route::of_own(view.tables(), question.vrf, question.src) {
        None => format!(
            "{} came in by {interface}, and no route leads back to it: add one, or set source_check = \"off\" there",
            question.src
        ),
        Some((egress, _)) => {
            let expected = view.interface(egress);
            format!(
                "{} came in by {interface}, and was expected from {expected}, where the route to it leads: mend the \
                 route, or set source_check = \"loose\" at {interface}",
                question.src
            )
        }
    }
}
