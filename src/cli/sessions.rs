//! `softgate show sessions|nat|rules` and `softgate clear sessions`.

use std::net::IpAddr;
use std::path::Path;

use clap::Subcommand;
use serde::Serialize;

use super::show::{ask, json_items};
use super::table::{list, or_dash, page_text, table, text};
use super::{Trouble, connect, print, print_json};
use crate::config::{AddressRange, BackendKey, PortRange, RuleName, Service, VrfName, ZoneName};
use crate::control::{
    ClearQuery, Cleared, ClientError, Halves, MappingEntry, MappingPage, MappingsQuery, NatRuleEntry,
    PoolEntry, Request, RuleEntry, RuleList, SessionEntry, SessionFilter, SessionPage, SessionsQuery,
    SharedPool,
};

/// Sessions shown if nobody says how many.
const LIMIT: u64 = 1000;

/// Which sessions; all that is given must be true.
#[derive(Debug, Default, clap::Args)]
struct FilterArgs {
    /// Source or destination, before or after translation: an address, a prefix or FIRST-LAST
    #[arg(long, value_name = "ADDRESS")]
    address: Option<AddressRange>,
    /// Source of the first packet
    #[arg(long, value_name = "ADDRESS")]
    source: Option<AddressRange>,
    /// Destination of the first packet, before or after translation
    #[arg(long, value_name = "ADDRESS")]
    destination: Option<AddressRange>,
    /// An address that NAT put in or took away
    #[arg(long, value_name = "ADDRESS")]
    nat: Option<AddressRange>,
    /// Source or destination port, or FIRST-LAST, before or after translation
    #[arg(long)]
    port: Option<PortRange>,
    /// tcp, udp, icmp, icmpv6, proto/89 ..., with destination ports if need be: tcp/443
    #[arg(long, value_name = "SERVICE")]
    protocol: Option<Service>,
    /// Zone on either side
    #[arg(long)]
    zone: Option<ZoneName>,
    /// Zone it comes from
    #[arg(long, value_name = "ZONE")]
    from_zone: Option<ZoneName>,
    /// Zone it goes to
    #[arg(long, value_name = "ZONE")]
    to_zone: Option<ZoneName>,
    /// VRF on either side
    #[arg(long)]
    vrf: Option<VrfName>,
    /// The rule that allowed it; `default` where none did
    #[arg(long)]
    rule: Option<String>,
    /// Its NAT rule: NAME, source/NAME, destination/NAME or static/NAME
    #[arg(long, value_name = "RULE")]
    nat_rule: Option<String>,
    /// The service that balances it
    #[arg(long, value_name = "NAME")]
    service: Option<RuleName>,
    /// The backend that it goes to: ADDRESS, ADDRESS:PORT or [IPV6]:PORT, each with @VRF if it names one
    #[arg(long)]
    backend: Option<BackendKey>,
    /// syn-sent, established, both-fin ..., and for what is not TCP replied or unreplied
    #[arg(long)]
    state: Option<String>,
    /// It began at least so long ago
    #[arg(long, value_name = "SECONDS")]
    older: Option<u32>,
    /// It began at most so long ago
    #[arg(long, value_name = "SECONDS")]
    younger: Option<u32>,
    /// Its last packet came at least so long ago
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u32>,
}

impl From<FilterArgs> for SessionFilter {
    fn from(args: FilterArgs) -> SessionFilter {
        SessionFilter {
            address: args.address,
            source: args.source,
            destination: args.destination,
            nat: args.nat,
            port: args.port,
            service: args.protocol,
            zone: args.zone,
            from_zone: args.from_zone,
            to_zone: args.to_zone,
            vrf: args.vrf,
            rule: args.rule,
            nat_rule: args.nat_rule,
            virtual_service: args.service,
            backend: args.backend,
            state: args.state,
            older_s: args.older,
            younger_s: args.younger,
            idle_s: args.idle,
        }
    }
}

/// Arguments of `show sessions`.
#[derive(Debug, clap::Args)]
pub struct SessionsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only how many
    #[arg(long, conflicts_with = "limit")]
    count: bool,
    /// At most this many
    #[arg(long, default_value_t = LIMIT)]
    limit: u64,
}

/// Arguments of `show nat`.
#[derive(Debug, clap::Args)]
pub struct NatArgs {
    /// Mappings instead of pools
    #[arg(long)]
    mappings: bool,
    /// Mappings of this inside address, prefix or FIRST-LAST
    #[arg(long, value_name = "ADDRESS", requires = "mappings")]
    inside: Option<AddressRange>,
    /// Mappings at this outside address, prefix or FIRST-LAST
    #[arg(long, value_name = "ADDRESS", requires = "mappings")]
    outside: Option<AddressRange>,
    /// Mappings with this inside or outside port, or FIRST-LAST
    #[arg(long, requires = "mappings")]
    port: Option<PortRange>,
    /// Mappings of tcp, udp, icmp or other
    #[arg(long, requires = "mappings")]
    protocol: Option<String>,
    /// Mappings with this VRF on either side
    #[arg(long, requires = "mappings")]
    vrf: Option<VrfName>,
    /// Only mappings that no session uses any more
    #[arg(long, requires = "mappings")]
    held: bool,
    /// At most this many mappings
    #[arg(long, requires = "mappings", default_value_t = LIMIT)]
    limit: u64,
}

/// Arguments of `clear`.
#[derive(Debug, clap::Args)]
pub struct ClearArgs {
    #[command(subcommand)]
    what: Clear,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Clear {
    /// End the sessions that match a filter: their next packets begin new ones, if the rules let them
    Sessions {
        #[command(flatten)]
        filter: FilterArgs,
        /// All sessions
        #[arg(long)]
        all: bool,
    },
}

/// Prints pages until there are no more or `limit` is reached. `page` gets where to go on and how many are wanted.
fn print_pages<T: Serialize>(
    limit: u64,
    json: bool,
    mut page: impl FnMut(Option<u64>, u32) -> Result<(Vec<T>, Option<u64>), ClientError>,
    rows: impl Fn(&[T], bool) -> String,
    what: &str,
) -> Result<(), Trouble> {
    let (mut after, mut shown) = (None, 0);
    if json {
        print("[")?;
    }
    loop {
        let left = u32::try_from(limit - shown).unwrap_or(u32::MAX);
        if left == 0 {
            break;
        }
        let (items, next) = page(after, left)?;
        // Of people's tables the header comes even if nothing else does.
        if json {
            print(&json_items(&items, shown == 0))?;
        } else if !items.is_empty() || (next.is_none() && shown == 0) {
            print(&rows(&items, shown == 0))?;
        }
        shown += items.len() as u64;
        after = next;
        if after.is_none() {
            break;
        }
    }
    if json {
        print("\n]\n")?;
    }
    if after.is_some() {
        eprintln!("{shown} {what} shown, there may be more: raise --limit or narrow the filter");
    }
    Ok(())
}

/// `show sessions`
pub(super) fn show(args: SessionsArgs, socket: &Path, json: bool) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    let mut query =
        SessionsQuery { filter: args.filter.into(), count: args.count, ..SessionsQuery::default() };
    if args.count {
        let mut count = 0;
        loop {
            let page: SessionPage = client.call(&Request::ShowSessions(query.clone()))?;
            count += page.matched;
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        #[derive(Serialize)]
        struct Count {
            sessions: u64,
        }
        return if json {
            print_json(&Count { sessions: count })
        } else {
            print(&format!("{count} sessions\n"))
        };
    }
    let page = |after, limit| {
        (query.after, query.limit) = (after, Some(limit));
        let page: SessionPage = client.call(&Request::ShowSessions(query.clone()))?;
        Ok((page.sessions, page.next))
    };
    print_pages(args.limit, json, page, sessions, "sessions")
}

/// `clear sessions`
pub(super) fn clear(args: ClearArgs, socket: &Path) -> Result<(), Trouble> {
    let Clear::Sessions { filter, all } = args.what;
    let filter = SessionFilter::from(filter);
    if filter == SessionFilter::default() && !all {
        return Err(Trouble::Unable(String::from("which sessions? Give a filter, or --all")));
    }
    let mut client = connect(socket)?;
    let mut query = ClearQuery { filter, all, after: None };
    let mut sum = Cleared::default();
    loop {
        let part: Cleared = client.call(&Request::ClearSessions(query.clone())).map_err(|error| {
            let trouble = Trouble::from(error);
            match (sum.ended, trouble) {
                (0, trouble) => trouble,
                (ended, Trouble::Wrong(why) | Trouble::Unable(why)) => {
                    Trouble::Unable(format!("{ended} sessions ended, then: {why}"))
                }
            }
        })?;
        sum.ended += part.ended;
        query.after = part.next;
        if query.after.is_none() {
            break;
        }
    }
    if args.json { print_json(&sum) } else { print(&format!("{} sessions ended\n", sum.ended)) }
}

pub(super) fn endpoint(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

fn sessions(page: &[SessionEntry], with_header: bool) -> String {
    let mut table = table([
        "PROTO",
        "SOURCE",
        "DESTINATION",
        "NEW-SOURCE",
        "NEW-DESTINATION",
        "VRF",
        "ZONES",
        "RULE",
        "NAT-RULE",
        "STATE",
        ">AGE-S",
        ">IDLE-S",
        ">EXPIRES-S",
        ">PACKETS",
        ">BYTES",
        ">PACKETS-BACK",
        ">BYTES-BACK",
    ]);
    for session in page {
        let new = |address: Option<IpAddr>, port: Option<u16>| {
            or_dash(address.zip(port).map(|(address, port)| endpoint(address, port)))
        };
        let vrf = match &session.to_vrf {
            None => session.vrf.clone(),
            Some(to) => format!("{}>{to}", session.vrf),
        };
        table.add_row([
            session.protocol.clone(),
            endpoint(session.source, session.source_port),
            endpoint(session.destination, session.destination_port),
            new(session.new_source, session.new_source_port),
            new(session.new_destination, session.new_destination_port),
            vrf,
            format!("{}>{}", session.from_zone, session.to_zone),
            if session.kept { format!("{} (kept)", session.rule) } else { session.rule.clone() },
            or_dash(session.nat_rule.as_ref()),
            session.state.clone(),
            session.age_s.to_string(),
            session.idle_s.to_string(),
            session.expires_s.to_string(),
            session.packets.to_string(),
            session.bytes.to_string(),
            session.reply_packets.to_string(),
            session.reply_bytes.to_string(),
        ]);
    }
    page_text(&table, with_header)
}

/// `show nat`
pub(super) fn nat(args: NatArgs, socket: &Path, json: bool) -> Result<(), Trouble> {
    if !args.mappings {
        return ask(socket, Request::ShowNat {}, json, pools);
    }
    let mut client = connect(socket)?;
    let mut query = MappingsQuery {
        inside: args.inside,
        outside: args.outside,
        port: args.port,
        protocol: args.protocol,
        vrf: args.vrf,
        held: args.held.then_some(true),
        ..MappingsQuery::default()
    };
    let page = |after, limit| {
        (query.after, query.limit) = (after, Some(limit));
        let page: MappingPage = client.call(&Request::ShowMappings(query.clone()))?;
        Ok((page.mappings, page.next))
    };
    print_pages(args.limit, json, page, mappings, "mappings")
}

/// A time as people say it.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

fn pools(list_of: &Vec<PoolEntry>) -> String {
    let mut table = table([
        "RULES",
        "VRF",
        "ADDRESSES",
        "PORTS",
        ">BLOCKS",
        ">GIVEN",
        ">FREE",
        ">USED-%",
        ">HOSTS",
        ">MAPPINGS",
        ">HELD",
        "REFUSED",
        "EXHAUSTED-IN",
    ]);
    for pool in list_of {
        let refused: Vec<String> =
            pool.refused.iter().map(|refusal| format!("{} {}", refusal.count, refusal.reason)).collect();
        let exhausted = match (pool.exhausted_in_s, pool.blocks_per_minute) {
            _ if pool.deterministic.as_ref().is_some_and(|how| !how.overflow) => String::from("by host"),
            (Some(seconds), _) => duration(seconds),
            (None, Some(_)) => String::from("never at this rate"),
            (None, None) => String::from("not known yet"),
        };
        table.add_row([
            list(&pool.rules),
            pool.vrf.clone(),
            list(&pool.addresses),
            format!("{}-{}", pool.first_port, pool.last_port),
            pool.blocks.to_string(),
            pool.blocks_given.to_string(),
            pool.blocks.saturating_sub(pool.blocks_given).to_string(),
            format!("{:.1}", pool.used_percent),
            pool.hosts.to_string(),
            pool.mappings.to_string(),
            pool.held.to_string(),
            list(&refused),
            exhausted,
        ]);
    }
    let shared = list_of.iter().filter_map(|pool| pool.deterministic.as_ref().map(|how| shared(pool, how)));
    let halves = list_of.iter().filter_map(|pool| pool.shared.as_ref().map(|halves| half(pool, halves)));
    text(&table) + &shared.chain(halves).collect::<String>()
}

/// Which ports are this node's.
fn half(pool: &PoolEntry, halves: &Halves) -> String {
    format!(
        "{}: shared by two nodes: this one gives ports {}-{}, {} of {} blocks in use; of the other half {} of {}\n",
        list(&pool.rules),
        halves.first_port,
        halves.last_port,
        halves.own_blocks_given,
        halves.own_blocks,
        halves.peer_blocks_given,
        halves.peer_blocks,
    )
}

/// What it takes to compute whose a port is.
fn shared(pool: &PoolEntry, how: &SharedPool) -> String {
    let SharedPool { hosts_per_address: hosts, ports_per_host: ports, first_port: first, .. } = how;
    format!(
        "{}: deterministic: {} hosts, {} in VRF {}; {hosts} to an address, {ports} ports each from {first} on{}\n",
        list(&pool.rules),
        how.hosts,
        list(&how.inside),
        how.inside_vrf,
        if how.overflow { ", then overflow" } else { "" },
    )
}

fn mappings(page: &[MappingEntry], with_header: bool) -> String {
    let mut table =
        table(["PROTO", "INSIDE", "INSIDE-VRF", "OUTSIDE", "OUTSIDE-VRF", ">SESSIONS", "STATE", ">WORKER"]);
    for mapping in page {
        let state = match (mapping.sessions, mapping.draining) {
            (0, _) => "held",
            (_, true) => "draining",
            (_, false) => "live",
        };
        table.add_row([
            mapping.protocol.clone(),
            endpoint(mapping.inside, mapping.inside_port),
            mapping.inside_vrf.clone(),
            endpoint(mapping.outside.into(), mapping.outside_port),
            mapping.outside_vrf.clone(),
            mapping.sessions.to_string(),
            state.to_owned(),
            mapping.worker.to_string(),
        ]);
    }
    page_text(&table, with_header)
}

/// `show rules`
pub(super) fn rules(socket: &Path, json: bool) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    let mut after = None;
    let rules = loop {
        let rules: RuleList = client.call(&Request::ShowRules { after })?;
        after = rules.next;
        if after.is_none() {
            break rules;
        }
    };
    if json {
        return print_json(&rules);
    }
    print(&rule_list(&rules.rules))?;
    if !rules.shadows_known {
        print("(too many rules to tell which can never match)\n")?;
    }
    if rules.nat_rules.is_empty() { Ok(()) } else { print(&format!("\n{}", nat_rules(&rules.nat_rules))) }
}

fn last_hit(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| String::from("never hit"), |seconds| format!("{} ago", duration(seconds)))
}

fn rule_list(list_of: &[RuleEntry]) -> String {
    let mut table = table(["RULE", "PLACE", "ACTION", ">HITS", ">PACKETS", ">BYTES", "LAST-HIT", "NOTE"]);
    for rule in list_of {
        let note = rule.shadowed_by.as_ref().map(|by| format!("never matches: {by} comes first"));
        table.add_row([
            rule.name.clone(),
            rule.place.clone(),
            rule.action.clone(),
            rule.hits.to_string(),
            rule.packets.to_string(),
            rule.bytes.to_string(),
            last_hit(rule.last_hit_s),
            note.unwrap_or_default(),
        ]);
    }
    text(&table)
}

fn nat_rules(list_of: &[NatRuleEntry]) -> String {
    let mut table = table(["NAT-RULE", ">HITS", ">PACKETS", ">BYTES", "LAST-HIT"]);
    for rule in list_of {
        table.add_row([
            rule.name.clone(),
            rule.hits.to_string(),
            rule.packets.to_string(),
            rule.bytes.to_string(),
            last_hit(rule.last_hit_s),
        ]);
    }
    text(&table)
}
