//! `softgate nat map|find`: the two functions of deterministic NAT (RFC 7422 section 2), by a running gateway or by a
//! config that some gateway had at the time in question.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::table::{list, table, text};
use super::{Trouble, connect, load_config, print, print_json};
use crate::config::VrfName;
use crate::control::{Fault, HostQuery, NatHost, PortQuery, Request};
use crate::gateway::deterministic;
use crate::replay::{NEIGHBOUR_CAPACITY, compile_tables};

/// Arguments of `nat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// By this config; default: by the running gateway
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The outside address and ports of an inside host
    Map {
        /// The host
        inside: Ipv4Addr,
        /// The VRF it is in
        #[arg(long)]
        vrf: Option<VrfName>,
    },
    /// The inside host that has an outside address and port
    Find {
        /// ADDRESS:PORT
        outside: SocketAddrV4,
        /// The VRF of the outside
        #[arg(long)]
        vrf: Option<VrfName>,
    },
}

/// `nat`
pub(super) fn run(args: Args, socket: &Path) -> Result<(), Trouble> {
    let request = match args.what {
        What::Map { inside, vrf } => Request::NatMap(HostQuery { inside, vrf }),
        What::Find { outside, vrf } => {
            Request::NatFind(PortQuery { outside: *outside.ip(), port: outside.port(), vrf })
        }
    };
    let hosts = match &args.config {
        None => connect(socket)?.call(&request)?,
        Some(file) => by_config(file, &request)?,
    };
    if args.json { print_json(&hosts) } else { print(&for_people(&hosts)) }
}

fn by_config(file: &Path, request: &Request) -> Result<Vec<NatHost>, Trouble> {
    let name = file.display();
    let mut config = load_config(file)?;
    // Of no matter here, and there may be millions.
    config.routes.clear();
    config.route_files.clear();
    config.neighbours.clear();
    let wrong = |error: &dyn fmt::Display| Trouble::Wrong(format!("{name}: {error}"));
    let compiler = compile_tables(&config, NEIGHBOUR_CAPACITY).map_err(|error| wrong(&error))?;
    let policy = &compiler.tables().policy;
    let hosts = match request {
        Request::NatMap(query) => deterministic::map(policy, &compiler, query),
        Request::NatFind(query) => deterministic::find(policy, &compiler, query),
        _ => unreachable!("the two functions"),
    };
    hosts.map_err(|Fault { message, .. }| Trouble::Wrong(message))
}

fn for_people(hosts: &Vec<NatHost>) -> String {
    let mut table = table(["INSIDE", "INSIDE-VRF", "OUTSIDE", "OUTSIDE-VRF", "PORTS", "RULES"]);
    for host in hosts {
        table.add_row([
            host.inside.to_string(),
            host.inside_vrf.clone(),
            host.outside.to_string(),
            host.outside_vrf.clone(),
            format!("{}-{}", host.first_port, host.last_port),
            list(&host.rules),
        ]);
    }
    text(&table)
}
