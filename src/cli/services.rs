//! `softgate service ...` and `softgate show services`.

use std::path::Path;
use std::str::FromStr;

use clap::Subcommand;

use super::apply::print_changed;
use super::change::ttl;
use super::revisions::{Saying, change};
use super::sessions::duration;
use super::table::{table, text};
use super::{Trouble, connect, print, print_json};
use crate::config::{Backend, BackendAdmin, BackendKey, Ranged, RuleName, Seconds};
use crate::control::{
    BackendChange, BackendEntry, BackendsRemoved, Changed, Request, ServiceBackends, ServiceEntry,
    ServiceList, ServicesQuery,
};

/// Arguments of `service`.
#[derive(Debug, clap::Args)]
pub struct ServiceArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    saying: Saying,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Give backends no new flows; those they have go on to their end
    Drain(Which),
    /// Take backends out at once: their flows come to what the service's `on_failure` says
    Disable(Which),
    /// Give backends new flows again
    Enable(Which),
    /// Give backends another weight
    Weight {
        /// The service
        service: RuleName,
        /// 0 to 1000; 0 is as drained
        #[arg(value_parser = weight)]
        weight: Ranged<0, 1000>,
        /// ADDRESS, ADDRESS:PORT or [IPV6]:PORT, each with @VRF if it names one
        #[arg(value_name = "BACKEND", required = true)]
        backends: Vec<BackendKey>,
    },
    /// Replace all backends of a service as one change; those that go keep the flows they have
    SetBackends {
        /// The service
        service: RuleName,
        /// ADDRESS:PORT[@VRF][=WEIGHT]
        #[arg(value_name = "BACKEND")]
        backends: Vec<Weighed>,
        /// They leave after this time, unless they are named again before: 90s, 10m
        #[arg(long, value_parser = ttl)]
        ttl: Option<Seconds>,
    },
    /// Add backends to a service, or say again that they are in it; the others stay
    AddBackends {
        /// The service
        service: RuleName,
        /// ADDRESS:PORT[@VRF][=WEIGHT]
        #[arg(value_name = "BACKEND", required = true)]
        backends: Vec<Weighed>,
        /// They leave after this time, unless they are named again before: 90s, 10m
        #[arg(long, value_parser = ttl)]
        ttl: Option<Seconds>,
    },
    /// Take backends out of a service; they keep the flows they have
    DelBackends(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The service
    service: RuleName,
    /// ADDRESS, ADDRESS:PORT or [IPV6]:PORT, each with @VRF if it names one
    #[arg(value_name = "BACKEND", required = true)]
    backends: Vec<BackendKey>,
}

/// A backend and its weight: `10.0.1.10:8443=2`.
#[derive(Clone, Debug)]
struct Weighed(Backend);

impl FromStr for Weighed {
    type Err = String;
    fn from_str(said: &str) -> Result<Weighed, String> {
        let (key, weight) = said.split_once('=').unwrap_or((said, "1"));
        let BackendKey { address, vrf } =
            key.parse().map_err(|error: crate::config::NotAllowed| error.to_string())?;
        Ok(Weighed(Backend { address, vrf, weight: self::weight(weight)?, state: BackendAdmin::Active }))
    }
}

fn weight(said: &str) -> Result<Ranged<0, 1000>, String> {
    let weight = said.parse().ok().and_then(|weight| Ranged::new(weight).ok());
    weight.ok_or_else(|| String::from("a weight is 0 to 1000"))
}

fn named(service: RuleName, backends: Vec<Weighed>, ttl_s: Option<Seconds>, others_stay: bool) -> Request {
    let backends = backends.into_iter().map(|Weighed(backend)| backend).collect();
    Request::ServiceSetBackends(ServiceBackends { service, backends, others_stay, ttl_s })
}

pub(super) fn run(args: ServiceArgs, socket: &Path) -> Result<(), Trouble> {
    let as_is = |Which { service, backends }: Which, state| {
        Request::ServiceSetBackend(BackendChange { service, backends, state: Some(state), weight: None })
    };
    let request = match args.what {
        What::Drain(which) => as_is(which, BackendAdmin::Drain),
        What::Disable(which) => as_is(which, BackendAdmin::Disabled),
        What::Enable(which) => as_is(which, BackendAdmin::Active),
        What::Weight { service, weight, backends } => {
            Request::ServiceSetBackend(BackendChange { service, backends, state: None, weight: Some(weight) })
        }
        What::SetBackends { service, backends, ttl } => named(service, backends, ttl, false),
        What::AddBackends { service, backends, ttl } => named(service, backends, ttl, true),
        What::DelBackends(Which { service, backends }) => {
            Request::ServiceDelBackends(BackendsRemoved { service, backends })
        }
    };
    let changed: Changed = change(&mut connect(socket)?, &request, &args.saying)?;
    print_changed(&changed, &format!("{} changed", changed.changed), args.json)
}

/// `show services`
pub(super) fn show(service: Option<RuleName>, socket: &Path, json: bool) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    let mut query = ServicesQuery { service, after: None };
    let list = loop {
        let list: ServiceList = client.call(&Request::ShowServices(query.clone()))?;
        query.after = list.next;
        if query.after.is_none() {
            break list;
        }
    };
    if json {
        return print_json(&list.services);
    }
    if list.services.is_empty() {
        return print("no services\n");
    }
    let shown: Vec<String> = list.services.iter().map(one).collect();
    print(&shown.join("\n"))
}

fn one(service: &ServiceEntry) -> String {
    let served =
        if service.services.is_empty() { String::from("everything") } else { service.services.join(", ") };
    let vrf = if service.vrf == "default" { String::new() } else { format!(" in VRF {}", service.vrf) };
    let clients = service.clients.map_or_else(String::new, |clients| format!(", {clients} clients held"));
    let head = format!(
        "{}: {served} to {}{vrf}, mode {}, {} flows{clients}, {} places, on failure: {}\n",
        service.name, service.address, service.mode, service.flows, service.places, service.on_failure
    );
    let mut table = table([
        "BACKEND",
        "STATE",
        "HEALTH",
        ">WEIGHT",
        ">SHARE",
        ">TAKES",
        ">FLOWS",
        ">OPENED",
        ">NEW/S",
        ">FAILED",
        ">PACKETS",
        ">BYTES",
        ">LOST",
        "LAST-FLOW",
        "CHANGED",
        "NOTE",
    ]);
    for backend in &service.backends {
        table.add_row(row(backend, service.places));
    }
    head + &text(&table)
}

fn row(backend: &BackendEntry, places: u32) -> [String; 16] {
    let ago = |seconds: Option<u64>| {
        seconds.map_or_else(|| String::from("-"), |seconds| format!("{} ago", duration(seconds)))
    };
    let state = if backend.left { "left" } else { &backend.state };
    let share = f64::from(backend.places) * 100.0 / f64::from(places.max(1));
    [
        backend.name.clone(),
        state.to_owned(),
        backend.health.clone().unwrap_or_else(|| String::from("-")),
        backend.weight.to_string(),
        format!("{share:.1} %"),
        format!("{} %", backend.takes_percent),
        backend.flows.to_string(),
        backend.opened.to_string(),
        backend.opened_per_s.map_or_else(|| String::from("-"), |rate| format!("{rate:.1}")),
        backend.failed.to_string(),
        backend.packets.to_string(),
        backend.bytes.to_string(),
        backend.lost.to_string(),
        ago(backend.last_flow_s),
        ago(backend.changed_s),
        match (&backend.note, backend.leaves_s) {
            (note, None) => note.clone().unwrap_or_default(),
            (None, Some(left)) => format!("leaves in {}", duration(left)),
            (Some(note), Some(left)) => format!("{note}, leaves in {}", duration(left)),
        },
    ]
}
