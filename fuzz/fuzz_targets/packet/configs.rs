//! The gateways an input chooses from: configs, and variants of each that limit, refuse or translate otherwise.

use toml::{Table, Value};

/// A gateway to choose.
pub struct Choice {
    /// Its config.
    pub text: &'static str,
    /// What is different in the config that takes over where an input says so: a [`merge`].
    pub successor: &'static str,
    /// What is different in variants of it, likewise.
    pub variants: &'static [&'static str],
    /// With two, port 0 is served by worker 0 and port 1 by worker 1, so that every forwarded frame is handed over.
    pub workers: usize,
    /// Whose cables the two are that an input has frames for: port and member.
    pub cables: [(u16, u8); 2],
    /// Another device, by which frames only leave, and which takes few at once.
    pub narrow: Option<(u16, u8)>,
}

const fn routes(text: &'static str, workers: usize) -> Choice {
    let cables = [(0, 0), (1, 0)];
    Choice { text, successor: "", variants: &ROUTING, workers, cables, narrow: None }
}

const fn zones(workers: usize) -> Choice {
    let (text, successor) =
        (include_str!("../../configs/zones.toml"), include_str!("../../configs/successor.toml"));
    Choice { successor, variants: &SESSIONS, ..routes(text, workers) }
}

pub const CONFIGS: [Choice; 14] = [
    routes(include_str!("../../configs/plain.toml"), 1),
    routes(include_str!("../../configs/vlan.toml"), 1),
    routes(include_str!("../../configs/qinq.toml"), 1),
    routes(include_str!("../../configs/ipv6.toml"), 1),
    routes(include_str!("../../configs/source-check.toml"), 1),
    routes(include_str!("../../configs/small-mtu.toml"), 1),
    routes(include_str!("../../configs/plain.toml"), 2),
    zones(1),
    zones(2),
    Choice {
        cables: [(0, 0), (0, 1)],
        narrow: Some((1, 0)),
        ..routes(include_str!("../../configs/devices.toml"), 1)
    },
    Choice { variants: &TUNNELS, ..routes(include_str!("../../configs/overlay.toml"), 1) },
    Choice { variants: &SEGMENTS, ..routes(include_str!("../../configs/bridge.toml"), 1) },
    Choice { variants: &RELAYS, ..routes(include_str!("../../configs/relay.toml"), 1) },
    Choice { variants: &PAIRS, ..routes(include_str!("../../configs/pair.toml"), 1) },
];

/// Most variants of a config.
pub const MAX_VARIANTS: usize = 8;

/// Without sessions: little room for neighbours and errors; sources checked; what is sent cut small.
const ROUTING: [&str; 4] = [
    "",
    "neighbours = { per_interface = 2, queue = 1, reachable_s = 1 }
     icmp = { rate = 1, burst = 1, per_source_rate = 1, per_source_burst = 1 }",
    "interface = { source_check = 'strict', mtu = 1280 }",
    "interface = { source_check = 'loose' }",
];

/// With overlays: little room for neighbours; nobody is followed; sources checked.
const TUNNELS: [&str; 3] = [
    "",
    "neighbours = { per_interface = 2, queue = 1, reachable_s = 1 }",
    "interface = { source_check = 'strict' }",
];

/// With bridges: little room for neighbours; a way around, on which what looks for loops comes back; members in zones,
/// and listeners that are followed; another node that passes frames on.
const SEGMENTS: [&str; 6] = [
    "",
    "neighbours = { per_interface = 2, queue = 1, reachable_s = 1 }",
    "bridge = { loop_probe_s = 1 }",
    "bridge = [{ name = 'seg', members = [
         { port = 'a', vlan = 300, zone = 'web' },
         { port = 'b', vlan = 300, zone = 'db' },
         { port = 'b', vlan = [200, 10], mtu = 600, zone = 'lab' },
         { vni = 8, vtep = '10.0.1.1', remotes = ['10.0.1.10', '10.0.2.2'], zone = 'db' },
     ], ageing_s = 10, loop_probe_s = 0,
        snooping = true, querier = true, unknown_multicast = 'routers', max_groups = 1 }]
     interface = { zone = 'segment' }
     flows = { tcp_established_s = 600, tcp_transitory_s = 60 }
     rule = [{ name = 'tcp', action = 'reject', from = { zone = 'web' }, to = { zone = 'db' }, service = 'tcp/25' },
             { name = 'any', action = 'allow', from = { zone = 'web' }, to = { zone = 'db' } }]",
    "bridge = { members = { zone = 'all' }, snooping = true, fast_leave = true, query_interval_s = 10 }
     interface = { zone = 'all' }
     flows = { tcp_established_s = 600, tcp_transitory_s = 60 }",
    "vrrp = [{ interface = 'b', id = 2, addresses = ['10.0.2.200'], group = 'other' }]
     bridge = { group = 'other' }",
];

/// With DHCP relays: more of what others said is let through.
const RELAYS: [&str; 3] = [
    "",
    "interface = {
         dhcp_relay = { option82 = 'append', from_relays = true, max_hops = 1, rate_limit = { per_s = 1000 } },
         dhcpv6_relay = { from_relays = true, max_hops = 2, rate_limit = { per_s = 1000 } },
     }",
    "interface = { zone = 'all', dhcp_relay = { option82 = 'replace', server_id_override = true } }
     zone = [{ name = 'all' }]",
];

/// With another node that decides: little room for neighbours; sources checked; every client proves itself first.
const PAIRS: [&str; 3] = [
    "",
    "neighbours = { per_interface = 2, queue = 1, reachable_s = 1 }
     interface = { source_check = 'strict' }",
    "zone = [{ name = 'inside', syn_proxy_above = 0 }, { name = 'outside', syn_proxy_above = 0 }]",
];

/// With sessions. No time may be longer than the gateway's rest.
const SESSIONS: [&str; MAX_VARIANTS] = [
    "",
    // Who may answer.
    "flows = { loose_tcp = false }
     nat = { filtering = 'address-dependent', hairpin = false, answer_unsolicited_syn = true }
     interface = { clamp_mss = true }",
    // Every client proves itself first; room for many sessions of a host.
    "flows = { per_host_sessions = 10000 }
     zone = [{ name = 'inside', syn_proxy_above = 0 }, { name = 'outside', syn_proxy_above = 0 }]
     interface = { clamp_mss = true }",
    // Limits of all kinds.
    "flows = { per_host_sessions = 3, half_open = 4, half_open_per_destination = 2 }
     zone = [
         { name = 'inside', rate_limit = { per_s = 1, burst = 6 } },
         { name = 'outside', rate_limit = { per_s = 1, burst = 6 } },
     ]",
    // Of NAT; more sessions than a host may have ports.
    "flows = { capacity = 256, per_host_sessions = 256 }
     nat = { max_blocks_per_host = 1, new_mappings_per_host = { per_s = 2, burst = 40 }, hold_down_s = 600 }",
    "flows = { per_host_sessions = 10000 }
     nat.source = [{
         name = 'pool', from = { zone = 'inside', prefix = ['10.0.1.0/27'] }, to = { zone = 'outside' },
         pool = ['10.0.2.64/31'], deterministic = true, ports_per_host = 64,
     }]",
    "flows = { per_host_sessions = 10000 }
     nat.source = [{
         name = 'pool', from = { zone = 'inside' }, to = { zone = 'outside' }, pool = 'interface',
         ports = '40000-40127',
     }]
     neighbours = { per_interface = 2, queue = 1 }
     icmp = { rate = 1, burst = 1 }",
    // Few that open, of all that may be; sources checked; what is sent cut small.
    "flows = { per_host_sessions = 10000, half_open = 8, tcp_opening_s = 5 }
     interface = { source_check = 'strict', mtu = 1280 }",
];

/// `text` with `changes`: tables are merged, also into each element of an array of tables, all else is replaced.
pub fn merge(text: &str, changes: &str) -> String {
    fn into(value: &mut Value, change: Value) {
        match (value, change) {
            (Value::Table(table), Value::Table(changes)) => {
                changes.into_iter().for_each(|(key, change)| match table.get_mut(&key) {
                    Some(value) => into(value, change),
                    None => _ = table.insert(key, change),
                })
            }
            (Value::Array(values), change @ Value::Table(_)) => {
                values.iter_mut().for_each(|value| into(value, change.clone()));
            }
            (value, change) => *value = change,
        }
    }
    let [mut config, changes] =
        [text, changes].map(|text| Value::Table(text.parse::<Table>().expect("TOML of ours")));
    into(&mut config, changes);
    toml::to_string(&config).expect("a table can be written")
}
