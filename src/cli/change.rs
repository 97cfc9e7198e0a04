//! `softgate add ...` and `softgate del ...`: routes, neighbours, members of groups, rules; one or a million.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Subcommand;

use super::apply::print_changed;
use super::revisions::{Saying, change};
use super::{Trouble, connect, read};
use crate::config::{
    self, ConfigError, GroupName, InterfaceName, Mac, Member, Name, Neighbour, Prefix, Rule, RuleName,
    Seconds, VrfName, route_file,
};
use crate::control::{Changed, GroupMembers, NeighbourKey, Request, RouteKey, RuleAddition};

/// Arguments of `add`.
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    #[command(subcommand)]
    what: Add,
    #[command(flatten)]
    saying: Saying,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Add {
    /// Add or replace a static route, or all routes of a file as one change
    #[command(
        override_usage = "softgate add route PREFIX via ADDRESS[%INTERFACE][@VRF][,ADDRESS...] [--vrf VRF]\n       \
        softgate add route PREFIX blackhole|unreachable [--vrf VRF]\n       \
        softgate add route --file FILE [--vrf VRF]"
    )]
    Route {
        /// PREFIX via ADDRESS[%INTERFACE][@VRF][,ADDRESS...], PREFIX blackhole or PREFIX unreachable
        #[arg(value_name = "ROUTE", required_unless_present = "file", num_args = 2..)]
        route: Vec<String>,
        /// A file with one such route per line
        #[arg(long, conflicts_with = "route")]
        file: Option<PathBuf>,
        /// The VRF of the routes
        #[arg(long, default_value = "default")]
        vrf: VrfName,
    },
    /// Add or replace a static neighbour
    Neighbour {
        /// The interface it is on
        interface: InterfaceName,
        /// Its address
        address: IpAddr,
        /// Its MAC
        mac: Mac,
        /// The tunnel end point it is behind, on an interface with a VNI that has several
        #[arg(long, value_name = "ADDRESS")]
        remote: Option<IpAddr>,
    },
    /// Add members to a group of the config
    Group {
        /// The group
        group: GroupName,
        /// Addresses, prefixes, FIRST-LAST or group:NAME
        #[arg(value_name = "MEMBER", required = true)]
        members: Vec<Member>,
        /// They go by themselves after so long: 90s, 10m, 12h, 7days
        #[arg(long, value_name = "TIME", value_parser = ttl)]
        ttl: Option<Seconds>,
    },
    /// Add a firewall rule, or put it in the place of the one that has its name
    Rule {
        /// The rule as in the config: 'name = "x", action = "deny", to = { prefix = "192.0.2.1" }'
        rule: RuleText,
        /// Before this rule; default: where the one of its name stands, or behind all
        #[arg(long, value_name = "RULE")]
        before: Option<RuleName>,
        /// Among the admin rules
        #[arg(long)]
        admin: bool,
    },
}

/// A rule as an inline table of TOML, with or without its braces.
#[derive(Clone, Debug)]
struct RuleText(Arc<Rule>);

impl FromStr for RuleText {
    type Err = String;
    fn from_str(text: &str) -> Result<RuleText, String> {
        #[derive(serde::Deserialize)]
        struct Document {
            rule: Arc<Rule>,
        }
        let text = text.trim();
        let table =
            if text.starts_with('{') { format!("rule = {text}") } else { format!("rule = {{ {text} }}") };
        let read: Result<Document, _> = toml::from_str(&table);
        read.map(|document| RuleText(document.rule)).map_err(|error| error.message().to_owned())
    }
}

/// Arguments of `del`.
#[derive(Debug, clap::Args)]
pub struct DelArgs {
    #[command(subcommand)]
    what: Del,
    #[command(flatten)]
    saying: Saying,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Del {
    /// Remove static routes as one change
    Route {
        /// Their prefixes
        #[arg(value_name = "PREFIX", required_unless_present = "file")]
        prefixes: Vec<Prefix>,
        /// A file with a prefix at the beginning of each line; a route file will do
        #[arg(long, conflicts_with = "prefixes")]
        file: Option<PathBuf>,
        /// The VRF of the routes
        #[arg(long, default_value = "default")]
        vrf: VrfName,
    },
    /// Remove a neighbour, static or learned
    Neighbour {
        /// The interface it is on
        interface: InterfaceName,
        /// Its address
        address: IpAddr,
    },
    /// Take members out of a group
    Group {
        /// The group
        group: GroupName,
        /// Members, as they were put in
        #[arg(value_name = "MEMBER", required = true)]
        members: Vec<Member>,
    },
    /// Remove firewall rules
    Rule {
        /// Their names
        #[arg(value_name = "RULE", required = true)]
        rules: Vec<RuleName>,
    },
}

pub(super) fn add(args: AddArgs, socket: &Path) -> Result<(), Trouble> {
    let send = |request| change(&mut connect(socket)?, &request, &args.saying);
    let changed: Changed = match args.what {
        Add::Route { file: Some(file), vrf, .. } => {
            let text = read(&file)?;
            let mut wrong = config::ConfigErrors::default();
            let routes = route_file::parse(&text, &vrf, |bad| {
                wrong.push(ConfigError {
                    file: file.display().to_string().into(),
                    line: Some(bad.line),
                    key: bad.key.to_owned(),
                    value: Some(bad.value),
                    allowed: bad.allowed.to_string(),
                });
            });
            if !wrong.errors.is_empty() {
                return Err(wrong.into());
            }
            let mut client = connect(socket)?;
            let mut stream = client.change_routes()?;
            for route in routes {
                stream.add(route)?;
            }
            stream.commit_with(args.saying.terms())?
        }
        Add::Route { route, vrf, file: None } => {
            let words = route.join(" ").replace(", ", ",");
            let route = route_file::parse_line(&words, &vrf)
                .map_err(|(_, value, allowed)| Trouble::Unable(format!("{value}: {allowed}")))?;
            send(Request::RouteAdd { routes: vec![route] })?
        }
        Add::Neighbour { interface, address, mac, remote } => {
            let neighbours = vec![Neighbour { interface, address, mac, remote }];
            send(Request::NeighbourAdd { neighbours })?
        }
        Add::Group { group, members, ttl } => {
            send(Request::GroupAdd(GroupMembers { group, members, ttl_s: ttl }))?
        }
        Add::Rule { rule: RuleText(rule), before, admin } => {
            send(Request::RuleAdd(RuleAddition { rule, before, admin }))?
        }
    };
    print_changed(&changed, &counted(&changed, "added"), args.json)
}

pub(super) fn del(args: DelArgs, socket: &Path) -> Result<(), Trouble> {
    let send = |request| change(&mut connect(socket)?, &request, &args.saying);
    let changed: Changed = match args.what {
        Del::Route { file: Some(file), vrf, .. } => {
            let text = read(&file)?;
            let prefixes = prefixes(&text, &file)?;
            let mut client = connect(socket)?;
            let mut stream = client.change_routes()?;
            for prefix in prefixes {
                stream.del(RouteKey { prefix, vrf: vrf.clone() })?;
            }
            stream.commit_with(args.saying.terms())?
        }
        Del::Route { prefixes, vrf, file: None } => {
            let key = |prefix| RouteKey { prefix, vrf: Name::clone(&vrf) };
            send(Request::RouteDel { routes: prefixes.into_iter().map(key).collect() })?
        }
        Del::Neighbour { interface, address } => {
            let neighbours = vec![NeighbourKey { interface, address }];
            send(Request::NeighbourDel { neighbours })?
        }
        Del::Group { group, members } => {
            send(Request::GroupDel(GroupMembers { group, members, ttl_s: None }))?
        }
        Del::Rule { rules } => send(Request::RuleDel { rules })?,
    };
    print_changed(&changed, &counted(&changed, "removed"), args.json)
}

/// A time as people write it, in whole seconds.
pub(super) fn ttl(text: &str) -> Result<Seconds, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    Seconds::new(seconds).map_err(|_| String::from("a time is 1s to 31days"))
}

fn counted(changed: &Changed, done: &str) -> String {
    format!("{} {done}", changed.changed)
}

/// The first word of every line.
fn prefixes(text: &str, file: &Path) -> Result<Vec<Prefix>, Trouble> {
    let mut prefixes = Vec::new();
    for (line, words) in route_file::lines(text) {
        let word = words.split_ascii_whitespace().next().unwrap_or_default();
        let prefix = word.parse().map_err(|allowed| {
            Trouble::Wrong(format!("{}:{line}: prefix: {word}: {allowed}", file.display()))
        })?;
        prefixes.push(prefix);
    }
    Ok(prefixes)
}
