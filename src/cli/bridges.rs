//! `softgate bridge ...`, `softgate show bridges` and `softgate show macs`.

use std::net::IpAddr;
use std::path::Path;

use clap::Subcommand;

use super::sessions::duration;
use super::table::{table, text};
use super::{Trouble, connect, print, print_json};
use crate::config::{Mac, Name};
use crate::control::{
    BridgeChanged, BridgeEntry, MacPage, MacsAdded, MacsQuery, MacsRemoved, MemberOpened, Request,
};

/// Arguments of `bridge`.
#[derive(Debug, clap::Args)]
pub struct BridgeArgs {
    #[command(subcommand)]
    what: What,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say behind which member stations are: that is neither learned over nor forgotten
    AddMac {
        /// The bridge
        bridge: Name,
        /// The member, as show bridges calls it: lan.100, vni5001
        member: String,
        /// The stations
        #[arg(value_name = "MAC", required = true)]
        macs: Vec<Mac>,
        /// Behind this remote tunnel end point of a VNI
        #[arg(long)]
        remote: Option<IpAddr>,
    },
    /// Forget stations, said or learned
    DelMac {
        /// The bridge
        bridge: Name,
        /// The stations
        #[arg(value_name = "MAC", required = true)]
        macs: Vec<Mac>,
    },
    /// Open a member that was shut because of a loop
    Open {
        /// The bridge
        bridge: Name,
        /// The member, as show bridges calls it: lan.100, vni5001
        member: String,
    },
}

pub(super) fn run(args: BridgeArgs, socket: &Path) -> Result<(), Trouble> {
    let request = match args.what {
        What::AddMac { bridge, member, macs, remote } => {
            Request::BridgeAddMacs(MacsAdded { bridge, macs, member, remote })
        }
        What::DelMac { bridge, macs } => Request::BridgeDelMacs(MacsRemoved { bridge, macs }),
        What::Open { bridge, member } => Request::BridgeOpen(MemberOpened { bridge, member }),
    };
    let done: BridgeChanged = connect(socket)?.call(&request)?;
    if args.json { print_json(&done) } else { print(&format!("{} changed\n", done.changed)) }
}

/// `show bridges`
pub(super) fn show(bridges: &[BridgeEntry]) -> String {
    if bridges.is_empty() {
        return String::from("no bridges\n");
    }
    bridges.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(bridge: &BridgeEntry) -> String {
    let interface = bridge.interface.as_deref().unwrap_or("none");
    let head = format!(
        "{}: interface {interface}, stations are forgotten after {}\n",
        bridge.name,
        duration(bridge.ageing_s)
    );
    let mut table = table([
        "MEMBER",
        "STATE",
        ">MACS",
        ">MOST",
        ">MTU",
        ">RX",
        ">RX-BYTES",
        ">TX",
        ">TX-BYTES",
        ">DROPS",
    ]);
    for member in &bridge.members {
        let state = match member.shut_s {
            Some(seconds) => format!("{}, shut for {}", member.state, duration(seconds)),
            None => member.state.clone(),
        };
        table.add_row([
            member.name.clone(),
            state,
            member.macs.to_string(),
            member.max_macs.to_string(),
            member.mtu_bytes.to_string(),
            member.rx_packets.to_string(),
            member.rx_bytes.to_string(),
            member.tx_packets.to_string(),
            member.tx_bytes.to_string(),
            member.drops.to_string(),
        ]);
    }
    head + &text(&table) + &listeners(bridge)
}

fn listeners(bridge: &BridgeEntry) -> String {
    let queriers = match &bridge.queriers[..] {
        [] => String::new(),
        families => format!("multicast queriers: {}\n", families.join(", ")),
    };
    if bridge.listeners.is_empty() {
        return queriers;
    }
    let mut table = table(["GROUP", "MEMBER", ">FORGOTTEN-IN"]);
    for listener in &bridge.listeners {
        let group = listener.group.map_or_else(|| String::from("router"), |group| group.to_string());
        table.add_row([group, listener.member.clone(), duration(listener.left_s)]);
    }
    queriers + &text(&table)
}

/// `show macs`
pub(super) fn show_macs(
    bridge: Option<Name>,
    member: Option<String>,
    socket: &Path,
    json: bool,
) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    let mut query = MacsQuery { bridge, member, after: None };
    let mut macs = Vec::new();
    loop {
        let page: MacPage = client.call(&Request::ShowMacs(query.clone()))?;
        macs.extend(page.macs);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    if json {
        return print_json(&macs);
    }
    if macs.is_empty() {
        return print("no stations\n");
    }
    let mut table = table(["BRIDGE", "MAC", "MEMBER", "REMOTE", "HEARD"]);
    for station in &macs {
        table.add_row([
            station.bridge.clone(),
            station.mac.to_string(),
            station.member.clone(),
            station.remote.map_or_else(|| String::from("-"), |remote| remote.to_string()),
            station
                .age_s
                .map_or_else(|| String::from("static"), |seconds| format!("{} ago", duration(seconds))),
        ]);
    }
    print(&text(&table))
}
