//! The control socket under weight: a line of 1 GB, a million routes. Alone in its process, so that
//! the process's memory is the server's.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use softgate::config::{Config, Name, NextHop, Prefix, Route, RouteTarget};
use softgate::control::{
    Backend, Changed, Client, Fault, Limits, Patch, Reply, Request, RouteKey, RouteSource, RoutesQuery,
    Server, Terms, Version,
};
use softgate::gateway::{BackEnd, Gateway};

/// Counts.
#[derive(Default)]
struct Counting {
    generation: u64,
    prefixes: u64,
}

impl Backend for Counting {
    fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::Commit { patches, .. } => {
                for patch in &patches {
                    let Patch::RouteAdd(routes) = patch else { panic!("{patch:?}") };
                    self.prefixes += routes.len() as u64;
                }
                self.generation += 1;
                let (generation, changed) = (self.generation, self.prefixes);
                Ok(Reply::Changed(Changed { generation, changed, ..Changed::default() }))
            }
            _ => Ok(Reply::Version(Version::default())),
        }
    }
}

/// One at a time: they measure memory and time.
static ALONE: Mutex<()> = Mutex::new(());

fn with_server(test: impl FnOnce(&PathBuf)) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let mut server = Server::bind(&path, None, Limits::default()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut backend = Counting::default();
            while !stop.load(Ordering::Acquire) {
                server.poll(&mut backend, Some(Duration::from_millis(10))).unwrap();
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&path)));
        stop.store(true, Ordering::Release);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_line_of_one_gigabyte_costs_a_few_megabytes_and_nobody_else_waits() {
    with_server(|path| {
        let mut other = Client::connect(path).unwrap();
        let before = resident_bytes();
        let mut most = before;
        let mut stream = UnixStream::connect(path).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        let mut sent = 0u64;
        while sent < 1 << 30 {
            match stream.write_all(&chunk) {
                Ok(()) => sent += chunk.len() as u64,
                Err(_) => break, // closed on us, as it should
            }
            let _: Version = other.call(&Request::ShowVersion {}).unwrap();
            most = most.max(resident_bytes());
        }
        assert!(sent < 64 << 20, "the server read {sent} bytes of one line");
        assert!(most - before < 64 << 20, "{} bytes for one client", most - before);
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(
            answer.contains("a line has at most 4194304 bytes; send large changes in pieces"),
            "{answer}"
        );
    });
}

#[test]
fn as_many_half_lines_as_there_are_places_stay_bounded() {
    with_server(|path| {
        let before = resident_bytes();
        let half = vec![b'['; 4_000_000];
        let mut held = Vec::new();
        for _ in 0..60 {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(&half).unwrap();
            held.push(stream);
        }
        let mut other = Client::connect(path).unwrap();
        let _: Version = other.call(&Request::ShowVersion {}).unwrap();
        let used = resident_bytes() - before;
        assert!(used < 640 << 20, "{used} bytes: more than twice the lines that are there");
    });
}

fn route(n: u32) -> Route {
    let net = ipnet::Ipv4Net::new((n << 8).into(), 24).unwrap();
    let next_hop =
        NextHop { address: [198, 51, 100, (n % 200) as u8 + 1].into(), vrf: None, interface: None };
    Route {
        prefix: Prefix::new(net.into()).unwrap(),
        vrf: Name::default_vrf(),
        target: RouteTarget::via(vec![next_hop]).unwrap(),
    }
}

fn stream_routes(count: u32) -> Duration {
    let mut took = Duration::ZERO;
    with_server(|path| {
        let routes: Vec<Route> = (0..count).map(route).collect();
        let start = Instant::now();
        let mut client = Client::connect(path).unwrap();
        let mut stream = client.change_routes().unwrap();
        for route in routes {
            stream.add(route).unwrap();
        }
        let changed = stream.commit().unwrap();
        took = start.elapsed();
        assert_eq!((changed.generation, changed.changed), (1, u64::from(count)));
    });
    took
}

#[test]
fn many_routes_are_one_transaction() {
    stream_routes(100_000);
}

/// A gateway without devices; `None` where this process may not have one.
fn gateway_of_a_million() -> Option<Gateway> {
    // The device does not exist, which is no error: it is bound when it appears.
    let config = "schema = 1\n[system]\nframes = 4096\n[[port]]\nname = \"up\"\ndevice = \"sg-none\"\n\
        [[interface]]\nname = \"up\"\nport = \"up\"\nmac = \"02:00:00:00:00:01\"\naddresses = [\"198.51.100.254/24\"]\n\
        [[route_file]]\npath = \"full.txt\"\n";
    let full: String = (0x2000_0000..0x2000_0000 + (1_000_000 << 8))
        .step_by(256)
        .map(|net: u32| {
            format!("{}/24 via 198.51.100.{}\n", std::net::Ipv4Addr::from(net), (net >> 8) % 200 + 1)
        })
        .collect();
    let config = Config::parse_with(config, "gw.toml", &mut |_| Ok(full.clone())).unwrap();
    let gateway = Gateway::start(config, "gw.toml", BackEnd::Own);
    gateway.inspect_err(|error| println!("SKIPPED: a gateway needs root: {error}")).ok()
}

/// Beside a million routes one more costs what one costs: nothing walks them. The fastest of many, so that only what
/// always takes long counts.
#[test]
fn one_route_beside_a_million_takes_under_two_milliseconds() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut gateway) = gateway_of_a_million() else { return };
    let commit = |gateway: &mut Gateway, patch| {
        let Reply::Changed(changed) =
            gateway.execute(Request::Commit { patches: vec![patch], terms: Terms::default() }).unwrap()
        else {
            panic!("no such answer")
        };
        Duration::from_micros(changed.applied_us)
    };
    let (mut added, mut deleted) = (Vec::new(), Vec::new());
    let key = |route: &Route| RouteKey { vrf: route.vrf.clone(), prefix: route.prefix };
    for n in 0..20 {
        // One in a part of the address space that the million leave free, and one of them.
        let (new, old) = (route(0x0a_0000 + n), route(0x20_0000 + n));
        added.push(commit(&mut gateway, Patch::RouteAdd(vec![new.clone()])));
        deleted.push(commit(&mut gateway, Patch::RouteDel(vec![key(&new)])));
        deleted.push(commit(&mut gateway, Patch::RouteDel(vec![key(&old)])));
        let again = gateway.execute(Request::Commit {
            patches: vec![Patch::RouteDel(vec![key(&old)])],
            terms: Terms::default(),
        });
        assert!(again.is_err(), "it is gone");
        added.push(commit(&mut gateway, Patch::RouteAdd(vec![old])));
    }
    let limit = Duration::from_millis(2);
    let (added, deleted) = (added.iter().min().unwrap(), deleted.iter().min().unwrap());
    assert!(*added < limit && *deleted < limit, "add {added:?}, delete {deleted:?}");
    assert_eq!(gateway.stop(), 0);
}

/// A page costs what it shows, wherever it begins. The fastest of several, so that only what always takes long counts.
#[test]
fn a_page_of_a_million_routes_costs_what_it_shows() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut gateway) = gateway_of_a_million() else { return };
    let mut pages = Vec::new();
    let (mut seen, mut query) = (0u32, RoutesQuery::default());
    loop {
        let start = Instant::now();
        let Ok(Reply::Routes(page)) = gateway.execute(Request::ShowRoutes(query.clone())) else {
            panic!("no such answer")
        };
        pages.push(start.elapsed());
        // Besides the million: the address of the interface, and the link it is on.
        assert_eq!(page.total, 1_000_002);
        for entry in page.routes.iter().filter(|entry| entry.source == RouteSource::Static) {
            assert_eq!(
                entry.prefix.net().addr(),
                std::net::IpAddr::from((0x2000_0000 + (seen << 8)).to_be_bytes())
            );
            seen += 1;
        }
        match page.next {
            Some(_) => query.after = page.next,
            None => break,
        }
    }
    assert_eq!((seen, pages.len()), (1_000_000, 101));
    let fastest = |part: &[Duration]| *part.iter().min().unwrap();
    let (first, last) = (fastest(&pages[..10]), fastest(&pages[90..100]));
    println!("101 pages of 10,000 routes: {:?}, one of them {first:?}", pages.iter().sum::<Duration>());
    assert!(last < 3 * first, "one of the first pages {first:?}, of the last {last:?}");
    // One route of a million: what walked all of them took 100 times as long.
    let one = RoutesQuery { limit: Some(1), ..query };
    let ask = |gateway: &mut Gateway| {
        let start = Instant::now();
        let answer = gateway.execute(Request::ShowRoutes(one.clone()));
        assert!(matches!(answer, Ok(Reply::Routes(page)) if page.routes.len() == 1));
        start.elapsed()
    };
    let one = (0..20).map(|_| ask(&mut gateway)).min().unwrap();
    assert!(one < first / 4, "{one:?}, and a page of 10,000 {first:?}");
    assert_eq!(gateway.stop(), 0);
}

#[test]
#[ignore = "prints a time; run it in release, on a quiet machine"]
fn a_million_routes() {
    println!("1,000,000 routes through the socket: {:?}", stream_routes(1_000_000));
}

#[test]
#[ignore = "prints a time; run it in release, on a quiet machine"]
fn a_config_of_many_routes() {
    let head = "schema = 1\n[[port]]\nname = \"up\"\ndevice = \"eth1\"\n[[interface]]\nname = \"up\"\nport = \"up\"\n\
        addresses = [\"198.51.100.254/24\"]\n";
    let (mut text, mut file) = (String::from(head), String::new());
    for n in 0..100_000u32 {
        let net = std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8));
        text.push_str(&format!("[[route]]\nprefix = \"{net}/24\"\nvia = [\"198.51.100.{}\"]\n", n % 200 + 1));
    }
    for n in 0..1_000_000u32 {
        let net = std::net::Ipv4Addr::from(0x2000_0000 + (n << 8));
        file.push_str(&format!("{net}/24 via 198.51.100.{}\n", n % 200 + 1));
    }
    let start = Instant::now();
    let config = softgate::config::Config::parse(&text, "gw.toml").unwrap();
    println!("100,000 [[route]] parsed and checked: {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(config.to_toml().matches("[[route]]").count(), 100_000);
    println!("100,000 [[route]] written: {:?}", start.elapsed());
    let text = head.to_owned() + "[[route_file]]\npath = \"full.txt\"\n";
    let start = Instant::now();
    let config = softgate::config::Config::parse_with(&text, "gw.toml", &mut |_| Ok(file.clone())).unwrap();
    println!("a route file of 1,000,000 parsed and checked: {:?}", start.elapsed());
    assert_eq!(config.all_routes().count(), 1_000_000);
}
