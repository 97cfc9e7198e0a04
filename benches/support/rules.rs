//! Firewall rules for benchmarks.

use super::classbench::Filter;

/// A ClassBench rule as a config has it.
pub fn rule(name: &str, filter: &Filter) -> String {
    let side = |zone: &str, (addr, len): (u32, u8)| {
        let net = ipnet::Ipv4Net::new(addr.into(), len).expect("a prefix").trunc();
        let prefix = if len == 0 { String::new() } else { format!(", prefix = \"{net}\"") };
        format!("{{ zone = \"{zone}\"{prefix} }}")
    };
    let ports = |(first, last): (u16, u16)| (first, last) != (0, u16::MAX);
    let service = match filter.protocol {
        Some(protocol @ (6 | 17)) => {
            let protocol = if protocol == 6 { "tcp" } else { "udp" };
            let (first, last) = filter.dst_ports;
            let service = if ports(filter.dst_ports) {
                format!("service = \"{protocol}/{}-{last}\"\n", first.max(1).min(last))
            } else {
                format!("service = \"{protocol}\"\n")
            };
            let (first, last) = filter.src_ports;
            let source = format!("source_ports = \"{first}-{last}\"\n");
            if ports(filter.src_ports) { service + &source } else { service }
        }
        Some(protocol) => format!("service = \"proto/{protocol}\"\n"),
        None => String::new(),
    };
    let (from, to) = (side("inside", filter.src), side("outside", filter.dst));
    format!("name = \"{name}\"\naction = \"deny\"\nfrom = {from}\nto = {to}\n{service}")
}
